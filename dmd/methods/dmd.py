"""Distribution Matching Distillation (Yin et al. 2023, Algorithm 1): one update of generator and fake denoiser."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dmd.methods import sharding
from dmd.methods.losses import Losses
from dmd.methods.numbers import Batch, Label
from dmd.methods.optimiser import Optimiser
from dmd.methods.readings import Readings
from dmd.networks.adapters import trained


@dataclass
class Distillation(Losses):
    """The denoisers of DMD and their losses, with everything an update changes.

    Attributes:
        average: moving average of the generator's network, or of its adapter.
        generator_optimiser, fake_optimiser: of the two trained networks.
    """

    average: AveragedModel = field(init=False)
    generator_optimiser: Optimiser = field(init=False)
    fake_optimiser: Optimiser = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        numbers, decay = self.numbers["optimiser"], self.numbers["ema_decay"]
        self.generator.eval().requires_grad_(True)
        self.fake.eval().requires_grad_(True)
        self.average = AveragedModel(trained(self.generator.network), multi_avg_fn=get_ema_multi_avg_fn(decay))
        if self.numbers.get("compute", {}).get("shard_parameters"):
            denoisers = (self.teacher, self.generator, self.fake)
            found = [getattr(denoiser, "network", None) for denoiser in denoisers]
            sharding.shard([*(each for each in found if isinstance(each, torch.nn.Module)), self.average.module])
        rate = numbers["learning_rate"]
        fake_rate = numbers["fake_learning_rate"] or rate
        self.generator_optimiser = Optimiser(self.generator.network, numbers, learning_rate=rate, share=self.share)
        self.fake_optimiser = Optimiser(self.fake.network, numbers, learning_rate=fake_rate, share=self.share)

    def generator_update(
        self, batch: Batch, phase: dict[str, Any], generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """One optimiser step of the generator on matching and regression loss, scaled by section and phase.

        With `shared_noise` the fake denoiser's own first loss reuses this noised batch and its pass: its gradient
        is left on the fake denoiser for `fake_update` to apply, and its noise levels are those of the matching range.

        Returns:
            The generated images of the matching batch, detached (empty if there was no matching loss; x_ref behind x
            with `match_pairs`), and what the log keeps of this update, as scalars.
        """
        row: dict[str, torch.Tensor] = {}
        matching = self.numbers["matching_weight"] * phase["matching_scale"]
        regression = self.numbers["regression_weight"] * phase["regression_scale"]
        generated = seen = batch.noise.new_empty(0)
        pairs = batch.pairs if regression else None
        joins, num, matched = bool(self.numbers.get("match_pairs")), len(batch.noise), None
        if matching:
            shape = (num + (len(pairs[0]) if joins and pairs else 0), *batch.noise.shape[1:])
            matched = self.begin_matching(shape, matching, phase, generator)
            self.match(batch, matched)
        if pairs is not None:
            seen = self.regress(pairs, regression, row, matched=matched if joins else None, keep=not matching)
        if matched is not None:
            generated = seen = self.end_matching(matched, row)
        row["generated_mean"], row["generated_std"] = seen.mean(), seen.std()
        row["generator_gradient_norm"] = self.generator_optimiser.update()
        self.average.update_parameters(trained(self.generator.network))
        return generated, row

    def fake_update(
        self,
        image: torch.Tensor,
        label: Label,
        generator: torch.Generator,
        *,
        has_gradient: bool = False,
    ) -> dict[str, torch.Tensor]:
        """One optimiser step of the fake denoiser on generated images (B, C, H, W), noise levels of the whole table."""
        readings = Readings(self.share)
        if not has_gradient:
            self.denoise(image, label, generator, readings)
        return readings.whole() | {"fake_gradient_norm": self.fake_optimiser.update()}

    def set_learning_rate(self, factor: float) -> None:
        """Sets both optimisers to their configured rate times `factor`."""
        self.generator_optimiser.scale_rate(factor)
        self.fake_optimiser.scale_rate(factor)
