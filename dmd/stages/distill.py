"""Stage distill: a student of few calls from a teacher, by the method that the configuration names."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dmd import methods
from dmd.cluster import job, processes, reporting, signals, torch_setup
from dmd.config.training import Distill
from dmd.data import manifest as manifests
from dmd.data import reuse
from dmd.data.images import ImageReader
from dmd.data.pairs import PairReader, TextReader
from dmd.data.storage import LOCAL, Settings, Storage
from dmd.data.verification import verify_once
from dmd.importers.distance_files import DistanceFiles, distances
from dmd.methods.base import Facts
from dmd.models import loading
from dmd.models.calls import Calls
from dmd.models.compute import set_tf32
from dmd.provenance import record
from dmd.provenance import tensors as tensor_files
from dmd.train import checkpoints, compatible, networks, state
from dmd.train.data import ImageStream, NoiseStream, PairStream, Stream
from dmd.train.grid import Grid
from dmd.train.loop import log_table, training_loop
from dmd.train.parallel import BatchSplit
from dmd.train.trainer import Trainer, assemble

LEVEL_FACTS = ("preconditioning", "scheduler", "sigma_data", "sigma_min", "sigma_max")
KEPT_FACTS = ("network", *LEVEL_FACTS, "shape", "image_shape", "num_classes", "text", "source_sha256")


def run(
    *,
    teacher: Path,
    output: Path,
    table: Path,
    distill: Distill,
    device: str,
    threads: int,
    manifest: Path | None = None,
    start: Path | None = None,
    lpips: Path | None = None,
    tiny_autoencoder: Path | None = None,
    autoencoder: Path | None = None,
    images: Path | None = None,
    states: Path | None = None,
    storage: Settings | None = None,
) -> None:
    """Writes the student and the log of its training.

    Args:
        teacher: teacher/denoiser.safetensors.
        output: distill/generator.safetensors; checkpoints/, grids/ and tensorboard/ beside it are scratch.
        table: distill/log.parquet, one row per `log_every` updates; `phase` is an index into `phases`, from 0.
        distill: section `distill` of the experiment.
        device: "auto" or "cpu".
        threads: of torch.
        manifest: pairs/manifest.parquet, where the method reads pairs.
        states: states/manifest.parquet, where the condition is text and the method reads no pairs.
        start: file that initialises the trained networks; the teacher's where absent.
        lpips: VGG16 weights, for a distance of kind lpips.
        tiny_autoencoder, autoencoder: what decodes latents, for a distance with decoder tiny or full.
        images: images/manifest.parquet, where the method reads images.
        storage: where shards of pairs are that are not here; no part of what is learnt.

    Raises:
        ValueError: a damaged input, another architecture, or numbers that are not finite (with the update and the
            last good checkpoint).
        Stopped: a signal came, and a checkpoint of the update at hand is written.
    """
    torch_setup.set_threads(threads)
    set_tf32(distill.compute.model_dump())  # type: ignore[arg-type]
    leads = processes.rank() == 0
    alone = record.exclusive(output) if leads else contextlib.nullcontext()
    with alone, processes.group(distill.processes, torch_setup.choose_device(device)):
        inputs = record.check_inputs(teacher=teacher, manifest=manifest, images=images, states=states)
        inputs |= record.check_inputs(start=start, lpips=lpips)
        inputs |= record.check_inputs(tiny_autoencoder=tiny_autoencoder, autoencoder=autoencoder)
        spec = distill.learnt_from() | {"device": device, "threads": threads}
        provenance = record.provenance("distill", spec, inputs)
        split = BatchSplit(processes.rank(), processes.count(), distill.compute.micro_batch_size)
        distillation = _Distillation(distill, teacher, start or teacher, manifest, torch_setup.choose_device(device))
        compatible.check_pairs(distill.method, distillation.pairs)
        trainer = distillation.trainer(DistanceFiles(lpips, tiny_autoencoder, autoencoder), split)
        calls = trainer.method.sampling()
        pairs = distillation.pairs if "pairs" in distill.method.reads() else None
        compatible.check_levels(calls, distillation.start, pairs)
        streams = distillation.streams(images, states, reuse.connect(storage), trainer.method.facts)
        grid = Grid(trainer, distillation.texts if trainer.method.facts.text else None).draw if calls else None
        loop = training_loop(
            trainer,
            streams,
            stage_name="distill",
            section="distill",
            provenance=provenance,
            folder=output.parent,
            draw_grid=grid,
            grid_every=distill.grid_every,
        )
        with signals.deferred():  # from the first update until the student is written
            rows, weights = loop.run(), state.student_weights(trainer, distill.adapter)
            if not leads:
                return
            metadata = {**provenance, **distillation.metadata(calls, trainer.kept_calls(loop.plan.total))}
            with record.publish(table, stage="distill", inputs=inputs) as temporary:
                manifests.write(temporary, log_table(rows), metadata)
            with record.publish(output, stage="distill", inputs=inputs) as temporary:
                tensor_files.write(temporary, weights, metadata)
            checkpoints.clear(loop.checkpoints)


class _Distillation:
    """What a distillation is made of: files, their facts, and the shuffled pairs."""

    def __init__(
        self, distill: Distill, teacher: Path, start: Path, manifest: Path | None, device: torch.device
    ) -> None:
        self.distill, self.device = distill, device
        self.teacher, self.start = loading.look_at(teacher), loading.look_at(start)
        self.pairs = None if manifest is None else manifests.read(manifest)
        self.text: PairReader | TextReader | None = None
        compatible.check(self.teacher, self.start, self.pairs)

    def trainer(self, files: DistanceFiles, split: BatchSplit) -> Trainer:
        """Networks on their device, and the method at work on them."""
        training, started = self.distill, self.start.facts
        facts = Facts(
            shape=tuple(started["shape"]),
            num_classes=started["num_classes"],
            sigma_data=started["sigma_data"],
            text="text" in started,
            sigma_max=started.get("sigma_max"),
            network=started.get("network"),
        )
        modules = networks.load(
            training.method,
            self.teacher,
            self.start,
            adapter=training.adapter,
            compute=training.compute,
            seed=training.seed,
            device=self.device,
            new=lambda role: methods.load(training.method.name).new_network(training.method, role, facts),
            log=reporting.log,
        )
        compared = distances(training, files, self.device)
        return assemble(training, modules, facts, distances=compared, split=split, start=False)

    def streams(
        self, images: Path | None, states: Path | None, storage: Storage | None, facts: Facts
    ) -> dict[str, Stream]:
        """Where the rows of updates come from."""
        pairs = None
        if self.pairs is not None:
            seed, verify = self.distill.seed, verify_once()
            pairs = PairReader(self.pairs, seed=seed, verify=verify, source=storage or LOCAL)
            reporting.log(f"{len(pairs)} pairs")
        if facts.text:
            self.text = pairs if states is None else TextReader(manifests.read(states), verify=verify_once("states"))
            if self.text is None:
                raise ValueError("the condition of this teacher is text: give --states, or --manifest of pairs")
        found: dict[str, Stream] = {"noise": NoiseStream(facts, self.text)}
        if pairs is not None:
            found |= {"pairs": PairStream(pairs), "trajectories": PairStream(pairs, last="trajectory")}
        if images is not None:
            reader = ImageReader(images, "training", verify=verify_once("images"))
            compatible.check_images(self.teacher, reader, images)
            found["images"] = ImageStream(reader)
        if missing := sorted(self.distill.method.reads() - found.keys()):
            raise ValueError(f"method {self.distill.method.name} reads {missing[0]}: none are given")
        return found

    def texts(self, num: int) -> torch.Tensor:
        """The first text states."""
        assert self.text is not None
        return self.text.texts(row % len(self.text) for row in range(num))

    def metadata(self, calls: Calls | None, kept: Mapping[str, Calls]) -> dict[str, Any]:
        """What the student's file says of itself; `kept` are the calls of further sets of weights, by their number."""
        started, adapter = self.start.facts, self.distill.adapter
        return {
            **{key: started[key] for key in KEPT_FACTS if key in started},
            "kind": "generator",
            **({"sigma": calls.sigmas[0], "calls": calls.facts()} if calls else {}),
            **({"calls_kept": {number: each.facts() for number, each in kept.items()}} if kept else {}),
            **({"adapter": adapter.model_dump(mode="json")} if adapter else {}),
        }


if __name__ == "__main__":
    job.main(run)
