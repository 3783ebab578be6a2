"""The loop of stage distill: networks and data, update after update, from a checkpoint on where there is one."""

import contextlib
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from dmd import loading
from dmd.artifacts import manifest as manifests
from dmd.artifacts.pairs import PairReader
from dmd.diffusion.compute import Compute, compile_network
from dmd.diffusion.noise import seeded_noise
from dmd.methods import state
from dmd.methods.dmd import Distillation
from dmd.methods.numbers import Batch, Numbers
from dmd.methods.phases import Phase, phase_of, plan
from dmd.methods.schedule import learning_rate_factor
from dmd.methods.share import Share
from dmd.stages import checkpoints, memory, networks, processes, stage
from dmd.stages.distance import regression_distance
from dmd.stages.feed import Feed
from dmd.stages.grid import save_grid

GRID_IMAGES = 64


class Training:
    """Networks, data and the loop over updates. The first process writes; all know the same.

    Attributes:
        checkpoints: folder of the checkpoints.
        distillation: the networks, on their device.
        facts: of the generator, for its metadata.
    """

    def __init__(
        self, teacher: Path, manifest: Path, start: Path, lpips: Path | None, folder: Path, numbers: Numbers
    ) -> None:
        self.numbers, self.folder = numbers, folder
        self.checkpoints = folder / "checkpoints"
        self.device = stage.choose_device(numbers["device"])
        pairs = manifests.read(manifest)
        found = networks.load(teacher, start, numbers, self.device)
        real, generator, fake, facts, started = found
        _check_facts(facts, started, pairs.metadata["facts"], numbers["sigma"], (teacher, start, manifest))
        loading.check_noise_scale(started, numbers["sigma"], start)
        compute = numbers.get("compute", Compute())
        distance = regression_distance(numbers["regression_distance"], lpips, self.device)
        share = Share(processes.rank(), processes.count(), compute.get("micro_batch_size"))
        shape = tuple(facts["shape"])
        memory.announce_distillation(numbers, share, (real, generator), distance, shape)
        for denoiser in found.denoisers:
            compile_network(denoiser, compute)
        self.distillation = Distillation(real, generator, fake, numbers, distance, share)
        self.phases, self.notes = plan(numbers)
        self.num_pairs, classes = len(pairs.table), facts["num_classes"]
        reader = PairReader(pairs, seed=numbers["seed"])
        self.feed = Feed(reader, self.phases, numbers, share, shape=shape, num_classes=classes)
        keys = ("network", "preconditioning", "sigma_data", "shape", "num_classes", "sigma_min", "sigma_max")
        self.facts = {
            **{key: started[key] for key in keys if key in started},
            "kind": "generator",
            "sigma": numbers["sigma"],
            **({"adapter": numbers["adapter"]} if numbers.get("adapter") else {}),
        }
        self.fixed = seeded_noise(range(GRID_IMAGES), shape, num_classes=classes, labels="balanced")

    def train(self, key: str) -> list[dict[str, float]]:
        """All updates that are left; returns the log rows of every `log_every`-th of all."""
        for line in self.notes:
            stage.log(line)
        total = sum(phase.updates for phase in self.phases)
        first, rows = checkpoints.resume(self.checkpoints, key=key, distillation=self.distillation)
        self._agree(first)
        stage.log(f"{self.num_pairs} pairs, {total} updates in {len(self.phases)} phases")
        status = stage.Progress(total=total, unit="updates", done=first)
        with contextlib.closing(self.feed):
            for update in range(first, total):
                phase = phase_of(self.phases, update)
                with memory.explained(update, self.checkpoints):
                    row = self.update(update, phase, total)
                check_finite(row, update, self.checkpoints)
                if update % self.numbers["log_every"] == 0:
                    rows.append({"update": update, "phase": phase.index, **row})
                self._keep(update + 1, total, key, rows)
                status.add(images=self._num_images(phase))
        return rows

    def weights(self) -> dict[str, torch.Tensor]:
        """Raw and averaged weights of the generator; all processes have to ask for them together."""
        return state.generator_weights(self.distillation)

    def update(self, update: int, phase: Phase, total: int) -> dict[str, float]:
        """Update number `update` of all `total`, in its phase; returns its log row."""
        numbers, optimiser = self.numbers, self.numbers["optimiser"]
        factor = learning_rate_factor(update, total=total, warmup=optimiser["warmup"], decay=optimiser["decay"])
        self.distillation.set_learning_rate(factor * phase.numbers["learning_rate_scale"])
        if update == phase.first and phase.numbers["fresh_optimiser"]:
            self.distillation.generator_optimiser.forget_moments()
        batch, random = self.feed.take(update)
        row: dict[str, torch.Tensor] = {}
        image = batch.noise.new_empty(0)
        if phase.trains_generator:
            image, row = self.distillation.generator_update(batch, phase.numbers, random)
        if numbers["fake_score"] and (phase.matching or not phase.trains_generator):
            row |= self._fake_updates(image, batch, phase, random, row)
        values = torch.stack([value.double() for value in row.values()]).tolist()
        return dict(zip(row, values, strict=True))

    def _fake_updates(
        self, image: torch.Tensor, batch: Batch, phase: Phase, random: torch.Generator, found: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Log columns, means over fake updates; a loss in `found` is of the pass shared with the matching gradient."""
        columns = defaultdict(list, {name: [value] for name, value in found.items() if name == "fake_loss"})
        label = batch.label
        for number in range(phase.fake_updates):
            if number or not phase.trains_generator:
                if number:
                    batch = self.feed.noise(random)
                label = batch.label
                image = self.distillation.generate_share(batch.noise, label)
            shared = self.numbers["shared_noise"] and phase.trains_generator and number == 0
            row = self.distillation.fake_update(image, label, random, has_gradient=shared)
            for name, value in row.items():
                columns[name].append(value)
        return {name: torch.stack(values).mean() for name, values in columns.items()}

    def _num_images(self, phase: Phase) -> int:
        """Images that networks are trained on in an update of this phase."""
        matched = phase.matching or not phase.trains_generator
        numbers = self.numbers
        return matched * numbers["matching_batch_size"] + phase.regression * numbers["regression_batch_size"]

    def _agree(self, first: int) -> None:
        """ValueError unless all processes continue at the same update."""
        found = self.distillation.share.add_up(torch.tensor(first, device=self.device))
        if found != first * processes.count():
            raise ValueError(f"processes disagree on the checkpoint in {self.checkpoints}: one found update {first}")

    def _keep(self, done: int, total: int, key: str, rows: list[dict[str, float]]) -> None:
        """Checkpoint and grid, where it is time: the first process writes them, others add the parts that they hold."""
        leads = processes.rank() == 0
        if not leads and not self.numbers.get("compute", Compute()).get("shard_parameters"):
            return
        if done % self.numbers["checkpoint_every"] == 0 and done < total:
            learnt = state.state(self.distillation)
            if leads:
                checkpoints.save(self.checkpoints, key=key, update=done, learnt=learnt, rows=rows)
        if done % self.numbers["grid_every"] == 0 or done == total:
            image = self.distillation.generate_all(*self.fixed)
            if leads:
                save_grid(self.folder / "grids" / f"{done:08d}.png", image.cpu())


def check_finite(row: dict[str, float], update: int, folder: Path) -> None:
    """ValueError if a value of a log row is not finite; empty bins of noise levels may be."""
    bad = [name for name, value in row.items() if not math.isfinite(value) and not name.startswith("gap_bin")]
    if not bad:
        return
    what = f"{', '.join(bad)} not finite at update {update}; {checkpoints.kept(folder)}"
    raise ValueError(f"{what}: lower distill.optimiser.learning_rate")


def _check_facts(
    teacher: dict[str, Any], start: dict[str, Any], pairs: dict[str, Any], sigma: float, paths: tuple[Path, Path, Path]
) -> None:
    if start["num_classes"] != teacher["num_classes"]:
        raise ValueError(
            f"{paths[0]} knows {teacher['num_classes']} classes, {paths[1]} {start['num_classes']}: they must agree"
        )
    if start["shape"] != teacher["shape"] or pairs["shape"] != teacher["shape"]:
        raise ValueError(
            f"{paths[0]} makes images {teacher['shape']}, {paths[1]} {start['shape']}, "
            f"{paths[2]} holds {pairs['shape']}: they must agree"
        )
    if pairs["sigma"] != sigma:
        raise ValueError(
            f"{paths[2]} was solved from sigma {pairs['sigma']}, distill.sigma is {sigma}: "
            "pairs teach the generator only at its own noise scale"
        )
