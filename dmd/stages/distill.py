"""Stage distill: trains, by the configured method, a student that needs one or a few network calls."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from dmd import methods
from dmd.config.method_base import PAIRED, STUDENT, TEACHER
from dmd.config.training import Distill
from dmd.data import manifest as manifests
from dmd.data import stored_blocks
from dmd.data.image_shards import ImageReader
from dmd.data.pairs import PairReader, TextReader
from dmd.data.shared_verification import verify_once
from dmd.data.storage import LOCAL, Settings, Storage
from dmd.importers import clip_files, feature_files
from dmd.importers.clip_files import CaptionScorer
from dmd.importers.loss_distances import DistanceFiles, distances
from dmd.jobs import job, processes, reporting, signals, torch_setup
from dmd.methods.base import Facts
from dmd.methods.parts.call_times import KEY, calls_at
from dmd.models import loading
from dmd.models.networks import extended
from dmd.models.student_calls import Calls
from dmd.provenance import record, tensor_files
from dmd.sampling.noise import trained_range
from dmd.train import checkpoints, input_checks, networks, state
from dmd.train import monitor as monitors
from dmd.train.data import ImageStream, NoiseStream, PairStream, Stream, TrajectoryStream
from dmd.train.image_measures import ImageMeasures
from dmd.train.loop import log_table, training_loop
from dmd.train.parallel import BatchSplit
from dmd.train.teacher_images import TeacherImages
from dmd.train.trainer import Trainer, assemble
from dmd.train.training_grid import Grid

CPU = torch.device("cpu")


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
    network: Path | None = None,
    clip_network: Path | None = None,
    prompts: Path | None = None,
    features: dict[str, Any] | None = None,
    clip: dict[str, Any] | None = None,
    storage: Settings | None = None,
) -> None:
    """Writes the student and the log of its training.

    Args:
        teacher: teacher/denoiser.safetensors.
        output: distill/generator.safetensors; checkpoints/, grids/ and tensorboard/ beside it are temporary.
        table: distill/log.parquet, one row per `log_every` updates; `phase` is an index into `phases`, from 0.
        distill: section `distill` of the experiment.
        device: "auto" or "cpu".
        threads: of torch.
        manifest: pairs/manifest.parquet, if the method reads pairs.
        states: states/manifest.parquet, if the condition is text and the method reads no pairs.
        start: file that initialises the trained networks; None: the teacher's file.
        lpips: VGG16 weights, for a distance of kind lpips.
        tiny_autoencoder, autoencoder: decoders of latents, for a distance or a monitor with decoder tiny or full.
        images: images/manifest.parquet, if the method reads images.
        network: weights of the monitor's feature network, if its kind has any.
        clip_network, prompts: folder of a CLIPModel, and the prompts of pairs or states; both are needed with `clip`.
        features: section `reference.features`, if the monitor measures in these features.
        clip: as in stage features, if the monitor compares images with prompts.
        storage: object storage with the shards of pairs that are not on this disk; does not change the result.

    Raises:
        ValueError: a damaged input, inputs that do not fit together, or a logged value that is not finite (the message
            names the update and the last good checkpoint).
        Stopped: a signal was received; a checkpoint was written after the update during which it came.
    """
    torch_setup.set_threads(threads)
    leads = processes.rank() == 0
    lock = processes.lock(output)
    with lock, processes.group(distill.processes, torch_setup.choose_device(device)):
        inputs = record.check_inputs(teacher=teacher, manifest=manifest, images=images, states=states)
        inputs |= record.check_inputs(start=start, lpips=lpips)
        inputs |= record.check_inputs(tiny_autoencoder=tiny_autoencoder, autoencoder=autoencoder)
        inputs |= record.check_inputs(network=network, prompts=prompts)
        scorer = None
        if distill.monitor and distill.monitor.clip:
            if clip is None or clip_network is None or prompts is None:
                raise ValueError("distill.monitor.clip: true needs `clip` of the spec, --clip-network and --prompts")
            scorer, _, inputs["clip"] = clip_files.caption_scorer(clip_network, prompts, clip, device=CPU)
        spec = distill.weight_spec() | {"device": device, "threads": threads}
        spec |= {name: value for name, value in (("features", features), ("clip", clip)) if value}
        provenance = record.provenance("distill", spec, inputs)
        split = BatchSplit(processes.rank(), processes.count(), distill.compute.micro_batch_size)
        distillation = _Distillation(distill, teacher, start or teacher, manifest, torch_setup.choose_device(device))
        input_checks.check_pairs(distill.method, distillation.pairs)
        decoders = DistanceFiles(lpips, tiny_autoencoder, autoencoder)
        trainer = distillation.trainer(decoders, split)
        calls = trainer.method.sampling()
        pairs = distillation.pairs if distill.method.starts_from_pairs else None  # whose noise the student gets
        input_checks.check_levels(calls, distillation.start, pairs)
        streams = distillation.streams(images, states, stored_blocks.connect(storage), trainer.method.facts)
        monitor = None
        if distill.monitor:
            monitor = distillation.monitor(trainer, calls, decoders, network, features, scorer)
        texts = distillation.texts if trainer.method.facts.text else None
        grid = Grid(trainer, texts, monitor.measures.small if monitor else None).draw
        loop = training_loop(
            trainer,
            streams,
            stage_name="distill",
            section="distill",
            provenance=provenance,
            folder=output.parent,
            draw_grid=grid,
            grid_every=distill.grid_every,
            monitor=monitor,
        )
        with signals.deferred():  # signals do not interrupt from the first update until the student is written
            rows = loop.run()
            best = monitor.best if monitor and monitor.best.weights else None
            weights = state.student_weights(trainer, distill.adapter, best.weights if best else None)
            if not leads:
                return
            metadata = {**provenance, **distillation.metadata(calls, trainer.earlier_calls(loop.plan.total))}
            fewer = {num: each.facts() for num, each in trainer.method.fewer_calls().items()}
            metadata |= {"fewer_calls": fewer} if fewer else {}
            value = best.value if best and math.isfinite(best.value) else None
            metadata |= {"best": {"update": best.update, "value": value}} if best else {}
            with record.publish(table, stage="distill", inputs=inputs) as temporary:
                manifests.write(temporary, log_table(rows), metadata)
            with record.publish(output, stage="distill", inputs=inputs) as temporary:
                tensor_files.write(temporary, weights, metadata)
            checkpoints.clear(loop.checkpoints)


class _Distillation:
    """The inputs of a distillation: teacher, start, pairs; makes its trainer and its streams of rows."""

    def __init__(
        self, distill: Distill, teacher: Path, start: Path, manifest: Path | None, device: torch.device
    ) -> None:
        self.distill, self.device = distill, device
        self.teacher, self.start = loading.denoiser_file(teacher), loading.denoiser_file(start)
        self.pairs = None if manifest is None else manifests.read(manifest)
        self.text: PairReader | TextReader | None = None
        input_checks.check_denoisers(self.teacher, self.start, self.pairs)
        input_checks.check_guidance(self.teacher, self.start, distill.method)

    def trainer(self, files: DistanceFiles, split: BatchSplit) -> Trainer:
        """Loads the networks; returns the trainer of the method."""
        training, start = self.distill, self.start.facts
        facts = Facts(
            shape=tuple(start["shape"]),
            num_classes=start["num_classes"],
            sigma_data=start["sigma_data"],
            text="text" in start,
            sigma_max=start.get("sigma_max"),
            network=start.get("network"),
            trained=trained_range(start, self.teacher.facts),
            preconditioning=start.get("preconditioning"),
            scheduler=start.get("scheduler"),
            guidance_range=loading.guidance_range(start),
        )
        if (times := getattr(training.method, "times", None)) is not None:  # a fault is told before networks are loaded
            calls = calls_at(times, training.method.final_calls(), facts)
            input_checks.check_times(calls, self.start, KEY)
        modules = networks.load(
            training,
            self.teacher,
            self.start,
            device=self.device,
            new=lambda role: methods.load(training.method.name).new_network(training.method, role, facts),
        )
        by_decoder = distances(training, files, self.device)
        return assemble(training, modules, facts, distances=by_decoder, split=split, start=False)

    def streams(
        self, images: Path | None, states: Path | None, storage: Storage | None, facts: Facts
    ) -> dict[str, Stream]:
        """The sources of rows by name."""
        pairs, levels = None, ()
        if self.pairs is not None:
            levels = tuple(self.pairs.metadata["facts"].get("trajectory_sigmas", ()))
            seed, verify = self.distill.seed, verify_once()
            pairs = PairReader(self.pairs, seed=seed, verify=verify, source=storage or LOCAL)
            reporting.log(f"{len(pairs)} pairs")
        if facts.text:
            self.text = pairs if states is None else TextReader(manifests.read(states), verify=verify_once("states"))
            if self.text is None:
                raise ValueError("the condition of this teacher is text: give --states, or --manifest of pairs")
        streams: dict[str, Stream] = {"noise": NoiseStream(facts, self.text)}
        if pairs is not None:
            streams |= {"pairs": PairStream(pairs), "trajectories": TrajectoryStream(pairs, levels)}
        if images is not None:
            reader = ImageReader(images, "training", verify=verify_once("images"))
            input_checks.check_images(self.teacher, reader, images)
            streams["images"] = ImageStream(reader)
        if missing := sorted(self.distill.method.reads() - streams.keys()):
            raise ValueError(f"method {self.distill.method.name} reads {missing[0]}, but no file with them was given")
        return streams

    def monitor(
        self,
        trainer: Trainer,
        calls: Calls,
        decoders: DistanceFiles,
        network: Path | None,
        features: dict[str, Any] | None,
        scorer: CaptionScorer | None,
    ) -> monitors.Monitor:
        """The monitor of the student; `network` and `features` are as in `run`.

        Raises:
            ValueError: files that its configuration needs are missing, or are not the expected ones.
        """
        config, facts, device = self.distill.monitor, trainer.method.facts, self.device
        assert config is not None
        codec = None
        if config.decoder != "none" and "image_shape" in self.teacher.facts:
            codec = decoders.codec(config.decoder, key="distill.monitor.decoder")
        extractor, _ = feature_files.load(network, features or {"kind": "pixels", "size": 8}, modes=None)
        measures = ImageMeasures(device, extractor, codec, scorer, scorer.clip if scorer else None)
        images = TeacherImages(
            self.teacher,
            self._guidance(),
            self.distill.compute,
            device,
            trainer.pass_size(),
        )
        texts: Callable[[int], torch.Tensor] | None = None
        num_texts = 0
        if facts.text and self.text is not None:
            texts, num_texts = self.texts, len(self.text)
            if scorer is not None:  # text states repeat the prompts from the first on where there are fewer
                num_texts = min(num_texts, len(scorer.captions))
        chosen = monitors.conditions(config, facts.num_classes, texts, num_texts)
        return monitors.Monitor(config, trainer, chosen, measures, images, calls)

    def _guidance(self) -> float:
        """Guidance of the images that the student learns: of the pairs that its method reads, else of its teacher.

        Where the student learns a range of guidance, this is the middle, with which it is drawn during the training.
        """
        method = self.distill.method
        if (guidances := method.guidance_range() or loading.guidance_range(self.start.facts)) is not None:
            return sum(guidances) / 2
        if self.pairs is not None and method.reads() & PAIRED:
            return float(self.pairs.metadata["facts"].get("guidance", 1.0))
        teacher = method.roles().get(TEACHER)
        return teacher.guidance if teacher else 1.0

    def texts(self, num: int) -> torch.Tensor:
        """The first `num` text states."""
        assert self.text is not None
        return self.text.texts(row % len(self.text) for row in range(num))

    def metadata(self, calls: Calls, earlier: Mapping[str, Calls]) -> dict[str, Any]:
        """Metadata of the student's file; `earlier`: calls of students kept from earlier phases, by their number."""
        facts, adapter, method = self.start.facts, self.distill.adapter, self.distill.method
        role, guidances = method.roles()[STUDENT], method.guidance_range()
        return {
            **{key: facts[key] for key in loading.STUDENT_FACTS if key in facts},
            "network": extended(facts["network"], **role.additions()),
            **({"guidance_range": list(guidances)} if role.guidance_input and guidances else {}),
            "kind": "generator",
            **({"denoises": True} if self.distill.method.denoises else {}),
            "sigma": calls.sigmas[0],
            "calls": calls.facts(),
            **({"calls_kept": {num: calls.facts() for num, calls in earlier.items()}} if earlier else {}),
            **({"adapter": adapter.model_dump(mode="json")} if adapter else {}),
        }


if __name__ == "__main__":
    job.main(run)
