"""Stage distill: a one-step generator from a teacher and its pairs (Yin et al. 2023, Algorithm 1)."""

import importlib.util
import math
from collections import defaultdict
from pathlib import Path
from typing import Any, Unpack

import pyarrow as pa
import torch

from dmd import loading
from dmd.artifacts import manifest as manifests
from dmd.artifacts import pinned, record
from dmd.artifacts import tensors as tensor_files
from dmd.artifacts.pairs import PairReader
from dmd.diffusion.denoiser import Denoiser
from dmd.diffusion.noise import seeded_noise
from dmd.methods.dmd import Distillation
from dmd.methods.losses import Distance
from dmd.methods.numbers import Batch, Numbers
from dmd.methods.phases import Phase, plan
from dmd.methods.regression import Lpips, l2_distance
from dmd.methods.schedule import learning_rate_factor, update_generator
from dmd.stages import checkpoints, stage
from dmd.stages.grid import save_grid

GRID_IMAGES = 64


def run(
    *,
    teacher: Path,
    manifest: Path,
    output: Path,
    table: Path,
    start: Path | None = None,
    lpips: Path | None = None,
    **numbers: Unpack[Numbers],
) -> None:
    """Writes the generator and the log of its training.

    Args:
        teacher: teacher/denoiser.safetensors, the real score.
        manifest: pairs/manifest.parquet.
        output: distill/generator.safetensors; checkpoints/ and grids/ beside it are scratch.
        table: distill/log.parquet, one row per `log_every` updates; `phase` is an index into `phases`, from 0.
        start: file that initialises generator and fake denoiser; the teacher's where absent.
        lpips: VGG16 weights, for regression_distance of kind lpips.
        numbers: section `distill` of the experiment, with device and threads.

    Raises:
        ValueError: a damaged input, another architecture, or numbers that are not finite (with the update and the
            last good checkpoint).
    """
    stage.set_threads(numbers["threads"])
    with record.exclusive(output):
        inputs = record.check_inputs(teacher=teacher, manifest=manifest, start=start, lpips=lpips)
        provenance = record.provenance("distill", numbers, inputs)
        key = checkpoints.checkpoint_key({**provenance, "spec": _without_cadence(numbers)})
        training = _Training(teacher, manifest, start or teacher, lpips, output.parent, numbers)
        rows = training.train(key)
        metadata = {**provenance, **training.facts}
        with record.publish(table, stage="distill", inputs=inputs) as temporary:
            manifests.write(temporary, _log_table(rows, numbers["log_every"]), metadata)
        with record.publish(output, stage="distill", inputs=inputs) as temporary:
            tensor_files.write(temporary, training.weights(), metadata)
        checkpoints.clear(training.checkpoints)


class _Training:
    """Networks, data and the loop over updates."""

    def __init__(
        self, teacher: Path, manifest: Path, start: Path, lpips: Path | None, folder: Path, numbers: Numbers
    ) -> None:
        self.numbers, self.folder = numbers, folder
        self.checkpoints = folder / "checkpoints"
        self.device = stage.choose_device(numbers["device"])
        pairs = manifests.read(manifest)
        real, facts = loading.load_denoiser(teacher)
        generator, started = loading.load_denoiser(start)
        fake, _ = loading.load_denoiser(start)
        if not isinstance(generator, Denoiser) or not isinstance(fake, Denoiser):
            raise ValueError(f"{start} holds no network: name an experiment with a trained teacher in distill.start")
        if started["num_classes"] != facts["num_classes"]:
            raise ValueError(
                f"{teacher} knows {facts['num_classes']} classes, {start} {started['num_classes']}: they must agree"
            )
        if started["shape"] != facts["shape"] or pairs.metadata["facts"]["shape"] != facts["shape"]:
            raise ValueError(
                f"{teacher} makes images {facts['shape']}, {start} {started['shape']}, "
                f"{manifest} holds {pairs.metadata['facts']['shape']}: they must agree"
            )
        if pairs.metadata["facts"]["sigma"] != numbers["sigma"]:
            raise ValueError(
                f"{manifest} was solved from sigma {pairs.metadata['facts']['sigma']}, distill.sigma is "
                f"{numbers['sigma']}: pairs teach the generator only at its own noise scale"
            )
        loading.check_noise_scale(started, numbers["sigma"], start)
        self.reader = PairReader(pairs, seed=numbers["seed"])
        self.distillation = Distillation(
            real.to(self.device),
            generator.to(self.device),
            fake.to(self.device),
            numbers,
            _distance(numbers["regression_distance"], lpips, self.device),
        )
        keys = ("network", "preconditioning", "sigma_data", "shape", "num_classes", "sigma_min", "sigma_max")
        self.facts = {
            **{key: started[key] for key in keys if key in started},
            "kind": "generator",
            "sigma": numbers["sigma"],
        }
        shape = tuple(facts["shape"])
        self.fixed = seeded_noise(range(GRID_IMAGES), shape, num_classes=facts["num_classes"], labels="balanced")

    def train(self, key: str) -> list[dict[str, float]]:
        """All updates that are left; returns the log rows of all."""
        phases, notes = plan(self.numbers)
        for line in notes:
            stage.log(line)
        total = sum(phase.updates for phase in phases)
        first, rows = checkpoints.resume(self.checkpoints, key=key, distillation=self.distillation)
        stage.log(f"{len(self.reader)} pairs, {total} updates in {len(phases)} phases")
        for update in stage.progress(range(first, total), total=total, unit="updates", done=first):
            phase = next(phase for phase in phases if update < phase.first + phase.updates)
            row = self._update(update, phase, total)
            _check_finite(row, update, self.checkpoints)
            rows.append({"update": update, "phase": phase.index, **row})
            done = update + 1
            if done % self.numbers["checkpoint_every"] == 0 and done < total:
                checkpoints.save(self.checkpoints, key=key, update=done, distillation=self.distillation, rows=rows)
            if done % self.numbers["grid_every"] == 0 or done == total:
                self._save_grid(done)
        return rows

    def weights(self) -> dict[str, torch.Tensor]:
        """Raw and averaged weights of the generator."""
        distillation = self.distillation
        tensors = {f"raw.{key}": value for key, value in distillation.generator.network.state_dict().items()}
        average = distillation.average.module.state_dict()
        return tensors | {f"ema.{key}": value for key, value in average.items()}

    def _update(self, update: int, phase: Phase, total: int) -> dict[str, float]:
        numbers, random = self.numbers, update_generator("distill", self.numbers["seed"], update)
        optimiser = numbers["optimiser"]
        factor = learning_rate_factor(update, total=total, warmup=optimiser["warmup"], decay=optimiser["decay"])
        self.distillation.set_learning_rate(factor * phase.numbers["learning_rate_scale"])
        if update == phase.first and phase.numbers["fresh_optimiser"]:
            self.distillation.generator_optimiser.forget_moments()
        batch = self._batch(update, phase, random)
        row: dict[str, torch.Tensor] = {}
        image = batch.noise.new_empty(0)
        if phase.trains_generator:
            image, row = self.distillation.generator_update(batch, phase.numbers, random)
        if numbers["fake_score"] and (phase.matching or not phase.trains_generator):
            row |= self._fake_updates(image, batch, phase, random)
        values = torch.stack([value.double() for value in row.values()]).tolist()
        return dict(zip(row, values, strict=True))

    def _fake_updates(
        self, image: torch.Tensor, batch: Batch, phase: Phase, random: torch.Generator
    ) -> dict[str, torch.Tensor]:
        found = defaultdict(list)
        label = batch.label
        for number in range(phase.fake_updates):
            if number or not phase.trains_generator:
                if number:
                    batch = self._noise(random)
                label = batch.label
                with torch.no_grad():
                    image = self.distillation.generate(batch.noise, label)
            shared = self.numbers["shared_noise"] and phase.trains_generator and number == 0
            row = self.distillation.fake_update(image, label, random, has_gradient=shared)
            for name, value in row.items():
                found[name].append(value)
        return {name: torch.stack(values).mean() for name, values in found.items()}

    def _noise(self, random: torch.Generator) -> Batch:
        num, shape = self.numbers["matching_batch_size"], self.facts["shape"]
        noise = torch.randn((num, *shape), generator=random)
        classes = self.facts["num_classes"]
        label = torch.randint(classes, (num,), generator=random) if classes else torch.full((num,), -1)
        return Batch(noise.to(self.device), label.to(self.device))

    def _batch(self, update: int, phase: Phase, random: torch.Generator) -> Batch:
        batch = self._noise(random)
        if not phase.regression:
            return batch
        num = self.numbers["regression_batch_size"]
        position = phase.first_pair + (update - phase.first) * num
        noise, label, image = (part.to(self.device) for part in self.reader.batch(position, num))
        return Batch(batch.noise, batch.label, (noise, label, image))

    def _save_grid(self, update: int) -> None:
        noise, label = (part.to(self.device) for part in self.fixed)
        with torch.no_grad():
            image = self.distillation.generate(noise, label)
        save_grid(self.folder / "grids" / f"{update:08d}.png", image.cpu())


def _without_cadence(numbers: Numbers) -> dict[str, Any]:
    """What decides the weights: how often a run writes scratch files and log rows does not."""
    cadence = ("checkpoint_every", "grid_every", "log_every")
    return {name: value for name, value in numbers.items() if name not in cadence}


def _distance(numbers: dict[str, Any], weights: Path | None, device: torch.device) -> Distance:
    if numbers["kind"] == "l2":
        return l2_distance
    if weights is None:
        raise ValueError("regression_distance of kind lpips needs VGG16 weights: give --lpips")
    pinned.check(weights, numbers["sha256"], key="regression_distance.sha256", source="VGG16 weights of torchvision")
    package = importlib.util.find_spec("lpips")
    if package is None or package.origin is None:
        raise ValueError("regression_distance of kind lpips needs the lpips package: its heads are read from there")
    heads = Path(package.origin).parent / "weights" / "v0.1" / "vgg.pth"
    trunk, linear = (torch.load(path, map_location="cpu", weights_only=True) for path in (weights, heads))
    return Lpips(trunk, linear, pooling=numbers["pooling"], size=numbers["size"]).to(device)


def _check_finite(row: dict[str, float], update: int, folder: Path) -> None:
    bad = [name for name, value in row.items() if not math.isfinite(value) and not name.startswith("gap_bin")]
    if not bad:
        return
    good = sorted(folder.glob("[0-9]*.safetensors"))
    kept = f"last good checkpoint {good[-1]}" if good else "no checkpoint was written yet"
    raise ValueError(f"{', '.join(bad)} not finite at update {update}; {kept}: lower distill.optimiser.learning_rate")


def _log_table(rows: list[dict[str, float]], every: int) -> pa.Table:
    names = ["update", "phase", *sorted({name for row in rows for name in row} - {"update", "phase"})]
    kept = rows[::every]
    columns: dict[str, Any] = {name: [row.get(name, math.nan) for row in kept] for name in names}
    columns |= {name: pa.array([int(value) for value in columns[name]], pa.int64()) for name in ("update", "phase")}
    return pa.table(columns)


if __name__ == "__main__":
    stage.main(run)
