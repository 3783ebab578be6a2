"""The loop of stage distill: networks and data, update after update, from a checkpoint on where there is one."""

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch

from dmd.artifacts import manifest as manifests
from dmd.artifacts.pairs import PairReader
from dmd.artifacts.storage import Storage
from dmd.diffusion.compute import Compute, compile_network
from dmd.diffusion.noise import seeded_noise
from dmd.methods import state
from dmd.methods.decoded import Decoded
from dmd.methods.dmd import Distillation
from dmd.methods.numbers import Batch, Numbers
from dmd.methods.phases import Phase, phase_of, plan
from dmd.methods.schedule import learning_rate_factor
from dmd.methods.share import Share
from dmd.stages import agreement, checkpoints, memory, networks, processes, shared_checks, stage, stops
from dmd.stages.distance import DistanceFiles, regression_distances
from dmd.stages.event_log import EventLog
from dmd.stages.feed import Feed
from dmd.stages.grid import decoded, save_grid

GRID_IMAGES = 64
LEVEL_FACTS = ("preconditioning", "scheduler", "sigma_data", "sigma_min", "sigma_max")
KEPT_FACTS = ("network", *LEVEL_FACTS, "shape", "image_shape", "num_classes", "text", "source_sha256")


class Training:
    """Networks, data and the loop over updates. The first process writes; all know the same.

    Attributes:
        checkpoints: folder of the checkpoints.
        distillation: the networks, on their device.
        facts: of the generator, for its metadata.
    """

    def __init__(
        self,
        teacher: Path,
        manifest: Path,
        start: Path,
        files: DistanceFiles,
        folder: Path,
        numbers: Numbers,
        storage: Storage | None = None,
    ) -> None:
        self.folder = folder
        self.checkpoints, self.grids = folder / "checkpoints", folder / "grids"
        self.events: EventLog | None = None
        self.device = stage.choose_device(numbers["device"])
        pairs = manifests.read(manifest)
        found = networks.load(teacher, start, numbers, self.device)
        real, generator, fake, facts, started = found
        self.numbers = numbers = agreement.with_sigma(numbers, started, start)
        agreement.check(facts, started, pairs.metadata["facts"], numbers["sigma"], (teacher, start, manifest))
        self.phases, self.notes = plan(numbers)
        if not self.phases:
            raise ValueError(f"distill: no phase has a loss left to learn from ({'; '.join(self.notes)})")
        agreement.check_pairs(self.phases, pairs)
        compute = numbers.get("compute", Compute())
        self.distances = regression_distances(numbers, self.phases, files, self.device)
        share = Share(processes.rank(), processes.count(), compute.get("micro_batch_size"))
        shape = tuple(facts["shape"])
        memory.announce_distillation(numbers, share, (real, generator), self.distances.values(), shape)
        for denoiser in found.denoisers:
            compile_network(denoiser, compute)
        distance = next(iter(self.distances.values()))
        self.distillation = Distillation(real, generator, fake, numbers, distance, share)
        reader = PairReader(pairs, seed=numbers["seed"], once=shared_checks.once(), storage=storage)
        self.num_pairs, self.feed = len(reader), Feed(reader, self.phases, numbers, share, facts=facts)
        self.facts = {
            **{key: started[key] for key in KEPT_FACTS if key in started},
            "kind": "generator",
            "sigma": numbers["sigma"],
            **({"adapter": numbers["adapter"]} if numbers.get("adapter") else {}),
        }
        noise, label = seeded_noise(range(GRID_IMAGES), shape, num_classes=facts["num_classes"], labels="balanced")
        prompted = "text" in facts
        self.fixed = noise, reader.texts(seed % len(reader) for seed in range(GRID_IMAGES)) if prompted else label

    def train(self, key: str) -> list[dict[str, float]]:
        """All updates that are left; returns the log rows of every `log_every`-th of all.

        Raises:
            Stopped: a signal came to any process; a checkpoint was written after the update that it came in.
        """
        for line in self.notes:
            stage.log(line)
        total = sum(phase.updates for phase in self.phases)
        first, rows = checkpoints.resume(self.checkpoints, key=key, distillation=self.distillation)
        self._agree(first)
        stage.log(f"{self.num_pairs} pairs, {total} updates in {len(self.phases)} phases")
        status = stage.Progress(total=total, unit="updates", done=first)
        with contextlib.closing(self.feed), self._event_log(first, rows):
            for update in range(first, total):
                phase = phase_of(self.phases, update)
                with memory.explained(update, self.checkpoints):
                    row = self.update(update, phase, total)
                checkpoints.check_finite(row, update, self.checkpoints)
                if update % self.numbers["log_every"] == 0:
                    rows.append({"update": update, "phase": phase.index, **row})
                    if self.events:
                        self.events.row(rows[-1])
                stopping = self._asked_to_stop() and update + 1 < total
                self._keep(update + 1, total, key, rows, stopping=stopping)
                status.add(images=self._num_images(phase))
                if stopping:
                    self._agree(update + 1)  # nobody ends before the checkpoint is written
                    who = stops.asked() or "a signal to another process"
                    told = f"stopped by {who} at update {update + 1} of {total}: run again to continue"
                    raise stops.Stopped(told, advanced=True)
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
        self.distillation.distance = self.distances[phase.numbers["decoder"]]
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
        label = batch.joined_label if self.numbers.get("match_pairs") else batch.label
        for number in range(phase.fake_updates):
            if number or not phase.trains_generator:
                if number:
                    batch = self.feed.noise(phase, random)
                label = batch.label
                image = self.distillation.generate_share(batch.noise, label)
            shared = self.numbers["shared_noise"] and phase.trains_generator and number == 0
            row = self.distillation.fake_update(image, label, random, has_gradient=shared)
            for name, value in row.items():
                columns[name].append(value)
        return {name: torch.stack(values).mean() for name, values in columns.items()}

    @contextlib.contextmanager
    def _event_log(self, first: int, rows: list[dict[str, float]]) -> Iterator[None]:
        """Keeps TensorBoard's logs of the first process open, where they are asked for."""
        if not self.numbers.get("tensorboard") or processes.rank() != 0:
            yield
            return
        grids = sorted(path for path in self.grids.glob("[0-9]*.png") if int(path.stem) <= first)
        self.events = EventLog(self.folder / "tensorboard", rows=rows, grids=grids)
        with contextlib.closing(self.events):
            yield

    def _num_images(self, phase: Phase) -> int:
        """Images that networks are trained on in an update of this phase."""
        matched = phase.matching or not phase.trains_generator
        sizes = phase.numbers
        return matched * sizes["matching_batch_size"] + phase.regression * sizes["regression_batch_size"]

    def _agree(self, first: int) -> None:
        """ValueError unless all processes continue at the same update."""
        found = self.distillation.share.add_up(torch.tensor(first, device=self.device))
        if found != first * processes.count():
            raise ValueError(f"processes disagree on the checkpoint in {self.checkpoints}: one found update {first}")

    def _asked_to_stop(self) -> bool:
        """Whether a signal came to any process: all know the same after the same update."""
        asked = torch.tensor(stops.asked() is not None, dtype=torch.int64, device=self.device)
        return bool(self.distillation.share.add_up(asked))

    def _keep(self, done: int, total: int, key: str, rows: list[dict[str, float]], *, stopping: bool) -> None:
        """Checkpoint and grid, where it is time: the first process writes them, others add the parts that they hold."""
        leads = processes.rank() == 0
        if not leads and not self.numbers.get("compute", Compute()).get("shard_parameters"):
            return
        if stopping or done % self.numbers["checkpoint_every"] == 0 and done < total:
            learnt = state.state(self.distillation)
            if leads:
                checkpoints.save(self.checkpoints, key=key, update=done, learnt=learnt, rows=rows)
        if done % self.numbers["grid_every"] == 0 or done == total:
            image = self.distillation.generate_all(*self.fixed)
            if leads:
                codecs = [each.codec for each in self.distances.values() if isinstance(each, Decoded)]
                shown = decoded(image, codecs[0]) if codecs else image
                save_grid(path := self.grids / f"{done:08d}.png", shown.cpu())
                if self.events:
                    self.events.grid(path)
