"""Stage distill: a one-step generator from a teacher and its pairs (Yin et al. 2023, Algorithm 1)."""

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from dmd.artifacts import manifest as manifests
from dmd.artifacts import record
from dmd.artifacts import tensors as tensor_files
from dmd.artifacts.storage import Settings
from dmd.config.training import Distill
from dmd.diffusion.compute import Compute, set_tf32
from dmd.stages import checkpoints, processes, stage, stops, stored
from dmd.stages.distance import DistanceFiles
from dmd.stages.section_numbers import numbers_of
from dmd.stages.training import Training


def run(
    *,
    teacher: Path,
    manifest: Path,
    output: Path,
    table: Path,
    start: Path | None = None,
    lpips: Path | None = None,
    tiny_autoencoder: Path | None = None,
    autoencoder: Path | None = None,
    storage: Settings | None = None,
    distill: Distill,
    device: str = "cpu",
    threads: int = 1,
) -> None:
    """Writes the generator and the log of its training.

    Args:
        teacher: teacher/denoiser.safetensors, the real score.
        manifest: pairs/manifest.parquet.
        output: distill/generator.safetensors; checkpoints/, grids/ and tensorboard/ beside it are scratch.
        table: distill/log.parquet, one row per `log_every` updates; `phase` is an index into `phases`, from 0.
        start: file that initialises generator and fake denoiser; the teacher's where absent.
        lpips: VGG16 weights, for regression_distance of kind lpips.
        tiny_autoencoder, autoencoder: what decodes latents, for a regression_distance with decoder tiny or full.
        storage: where shards of pairs are that are not here; no part of what is learnt.
        distill: the section of the experiment; paths that it names do not count.

    Raises:
        ValueError: a damaged input, another architecture, or numbers that are not finite (with the update and the
            last good checkpoint).
        Stopped: a signal came, and a checkpoint of the update at hand is written.
    """
    numbers = numbers_of(distill, device, threads)
    stage.set_threads(threads)
    set_tf32(numbers.get("compute", Compute()))
    leads = processes.rank() == 0
    alone = record.exclusive(output) if leads else contextlib.nullcontext()
    with alone, processes.joined(numbers.get("processes", 1), stage.choose_device(numbers["device"])):
        inputs = record.check_inputs(teacher=teacher, manifest=manifest, start=start, lpips=lpips)
        inputs |= record.check_inputs(tiny_autoencoder=tiny_autoencoder, autoencoder=autoencoder)
        spec = {name: value for name, value in numbers.items() if name != "tensorboard"}
        provenance = record.provenance("distill", spec, inputs)
        key = checkpoints.checkpoint_key({**provenance, "spec": _without_cadence(spec)})
        files = DistanceFiles(lpips, tiny_autoencoder, autoencoder)
        there = stored.opened(storage)
        training = Training(teacher, manifest, start or teacher, files, output.parent, numbers, there)
        with stops.held():  # from the first update until the generator is written
            rows, weights = training.train(key), training.weights()
            if not leads:
                return
            metadata = {**provenance, **training.facts}
            with record.publish(table, stage="distill", inputs=inputs) as temporary:
                manifests.write(temporary, _log_table(rows), metadata)
            with record.publish(output, stage="distill", inputs=inputs) as temporary:
                tensor_files.write(temporary, weights, metadata)
            checkpoints.clear(training.checkpoints)


def _without_cadence(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the weights: how often a run writes scratch files and log rows does not.

    Where `log_every` changes on the way, rows from before keep the old cadence.
    """
    cadence = ("checkpoint_every", "grid_every", "log_every")
    return {name: value for name, value in numbers.items() if name not in cadence}


def _log_table(rows: list[dict[str, float]]) -> pa.Table:
    names = ["update", "phase", *sorted({name for row in rows for name in row} - {"update", "phase"})]
    columns: dict[str, Any] = {name: [row.get(name, math.nan) for row in rows] for name in names}
    columns |= {name: pa.array([int(value) for value in columns[name]], pa.int64()) for name in ("update", "phase")}
    return pa.table(columns)


if __name__ == "__main__":
    stage.main(run)
