"""Distillations of digits that are made to collapse, and healthy ones: python -m bench.drift.

Writes bench/results/drift.json: for each run what its monitor measured, and which signs of drift `dmd.train.drift`
names after how many updates. The thresholds in that file were chosen on these runs. A run that was made to collapse has
done so if its last distance is at least `TIMES` that of the healthy runs of its experiment, and `FARTHER` above it:
some methods withstand what is done to them. Teachers and pairs are made first; a run takes about two minutes of a core,
all of them about 80. If cases are named, the file keeps the others.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import json
import logging
import multiprocessing
import re
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dmd.config import Experiments, load
from dmd.config.training import Distill, TeacherTraining
from dmd.data import manifest as manifests
from dmd.metrics.teacher_comparison import CONTRAST, DIVERSITY, FEATURES
from dmd.stages import distill, images, manifest, pairs, teacher
from dmd.train import drift

OUTPUT = Path(__file__).parent / "results" / "drift.json"
GUIDANCE = 15.0
STILL = 1.0e-30  # a learning rate that changes no weight
HEALTHY_SEEDS, OTHER_SEEDS = (0, 1, 2), (0,)
TIMES, FARTHER = 1.5, 0.1  # last distance of a run that collapsed, over and above the mean of healthy ones
EVERY = 15  # updates between measurements of `digits`, of which the default interval allows few with guidance


@dataclass(frozen=True)
class Case:
    """A kind of run.

    Attributes:
        experiment: of config.yaml; its section `distill` is changed.
        rates: factors on learning rates, by role.
        method: changed keys of the method; `fake_updates` and `matching_scale` are those of its phases.
        guided: whether the teacher was trained with label dropout.
    """

    experiment: str
    healthy: bool
    rates: Mapping[str, float] = field(default_factory=dict)
    method: Mapping[str, Any] = field(default_factory=dict)
    guided: bool = False

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the trainings."""
        return HEALTHY_SEEDS if self.healthy else OTHER_SEEDS


CASES: dict[str, Case] = {}
for _name in ("digits", "digits-dmd2", "digits-dmd2-2", "digits-dmd2-4", "digits-sid"):
    CASES[_name] = Case(_name, True)
    CASES[f"{_name}, student rate x 20"] = Case(_name, False, {"student": 20})
    CASES[f"{_name}, fake rate / 50"] = Case(_name, False, {"fake": 1 / 50})
    CASES[f"{_name}, no fake updates"] = Case(_name, False, {"fake": STILL})
    if _name != "digits-sid":
        CASES[f"{_name}, guidance 15"] = Case(_name, False, method={"guidance": GUIDANCE}, guided=True)
CASES["digits, no fake updates"] = Case("digits", False, method={"fake_updates": 0})


@functools.cache
def experiments() -> Experiments:
    """Those of config.yaml, read once in a process."""
    return Experiments(load())


def section(case: Case, seed: int) -> Distill:
    """Section `distill` of a run."""
    found = copy.deepcopy(experiments().section(case.experiment, "distill").with_defaults())
    for role, factor in case.rates.items():
        found["optimisers"][role]["learning_rate"] *= factor
    method = dict(case.method)
    if "fake_updates" in method:
        number = method.pop("fake_updates")
        for phase in found["method"]["phases"]:
            if phase.get("train") != "fake":
                phase["fake_updates"] = number
    found["method"] |= method
    if case.experiment == "digits":
        found["monitor"] |= {"every": EVERY}
    return Distill.model_validate(found | {"seed": seed, "checkpoint_every": 10**6, "grid_every": 10**6})


class Inputs:
    """Teachers and pairs of digits, made once in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._images = folder, folder / "images" / "manifest.parquet"

    def images(self) -> Path:
        """The manifest of the images of `digits`."""
        if not self._images.exists():
            images.run(output=self._images, **experiments().spec("digits", "images"))
        return self._images

    def teacher(self, guided: bool) -> Path:
        """The teacher of `digits`, or the same trained with label dropout."""
        output = self._folder / ("guided" if guided else "plain") / "denoiser.safetensors"
        if not output.exists():
            section: Any = experiments().sections("digits").teacher
            training = section.training.with_defaults()
            training["method"]["label_dropout"] = 0.1 if guided else 0.0
            teacher.run(
                output=output,
                table=output.with_name("log.parquet"),
                kind="train",
                images=self.images(),
                network=section.network.with_defaults(),
                training=TeacherTraining.model_validate(training),
            )
        return output

    def pairs(self, guided: bool) -> Path:
        """The pairs of `digits` of that teacher, without guidance."""
        folder = self._folder / ("guided" if guided else "plain") / "pairs"
        output = folder / "manifest.parquet"
        if not output.exists():
            section: Any = experiments().sections("digits").pairs
            block = folder / "blocks" / "00000-00003.parquet"
            keys = ("solver", "first_seed", "batch_size", "labels", "shard_size")
            spec = {key: value for key, value in section.with_defaults().items() if key in keys}
            pairs.run(teacher=self.teacher(guided), output=block, first=0, last=3, **spec)
            manifest.run(blocks=[block], output=output, num=section.num_pairs, shard_size=section.shard_size)
        return output


def run(inputs: Inputs, case: Case, seed: int) -> dict[str, Any]:
    """What the monitor of one run measured, and the phases of the run."""
    given = section(case, seed)
    features: Any = experiments().section("digits", "reference").features
    with tempfile.TemporaryDirectory() as folder:
        table, begin = Path(folder, "log.parquet"), time.process_time()
        distill.run(
            teacher=inputs.teacher(case.guided),
            output=Path(folder, "generator.safetensors"),
            table=table,
            distill=given,
            device="cpu",
            threads=1,
            manifest=inputs.pairs(case.guided) if "pairs" in given.method.reads() else None,
            network=Path(features.file),
            features={"kind": features.kind, "sha256": features.sha256},
        )
        rows = drift.measured(manifests.read_table(table)[0].to_pylist())
    columns = {name: [round(row[name], 4) for row in rows] for name in rows[0] if "_teacher/" in name}
    places = {name: [int(row[name]) for row in rows] for name in ("update", "phase")}
    phases = [[phase.first, phase.stop] for phase in given.method.plan()[0]]
    return {"phases": phases, **places, **columns, "cpu_s": round(time.process_time() - begin, 1)}


def judged(found: Mapping[str, Any]) -> dict[str, int]:
    """The signs of drift that are named before the end of a run, and the number of updates before each."""
    keys = ("update", "phase", *(name for name in found if "_teacher/" in name))
    rows = [dict(zip(keys, values, strict=True)) for values in zip(*(found[key] for key in keys), strict=True)]
    phases = [range(*each) for each in found["phases"]]
    first: dict[str, int] = {}
    for number in range(1, len(rows)):
        for sign in drift.signs(rows[:number], phases):
            first.setdefault(sign.name, int(rows[number - 1]["update"]) + 1)
    return first


def collapsed(name: str, results: Mapping[str, Any]) -> bool:
    """Whether the run has collapsed, by its last distance to the teacher's images."""
    experiment = name.split(",")[0]
    healthy = [results[key][FEATURES][-1] for key in results if re.fullmatch(rf"{experiment}, seed \d+", key)]
    mean, last = statistics.fmean(healthy), results[name][FEATURES][-1]
    return bool(last >= TIMES * mean and last >= mean + FARTHER)


def main() -> None:
    """Command line: see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"default: all, {', '.join(CASES)}")
    parser.add_argument("--folder", type=Path, help="keeps teachers and pairs for another call; default: temporary")
    parser.add_argument("--at-once", type=int, default=2, help="runs at a time, each on one core; default: 2")
    parser.add_argument("--again", action="store_true", help="judge the runs in the file again, and run nothing")
    parsed = parser.parse_args()
    if odd := sorted(set(parsed.cases) - CASES.keys()):
        parser.error(f"{odd[0]!r} is no case")
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING)
    results: dict[str, Any] = json.loads(OUTPUT.read_text()) if OUTPUT.exists() else {}
    with contextlib.ExitStack() as stack:
        folder = parsed.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        inputs = Inputs(folder)
        runs = [(name, seed) for name in parsed.cases or CASES for seed in CASES[name].seeds]
        context = multiprocessing.get_context("spawn")
        if not parsed.again:
            with ProcessPoolExecutor(parsed.at_once, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                made = {CASES[name].guided for name, _ in runs}
                inputs.images()
                for _ in pool.map(inputs.pairs, made):
                    pass
                started = {pool.submit(run, inputs, CASES[name], seed): (name, seed) for name, seed in runs}
                for future in as_completed(started):
                    name, seed = started[future]
                    results[f"{name}, seed {seed}"] = {"healthy": CASES[name].healthy, **future.result()}
                    write(results)
    write(results)
    print("\n".join(table(results)))


def write(results: dict[str, Any]) -> None:
    """Writes the file, a run per line."""
    for found in results.values():
        found["signs"] = judged(found)
    lines = (f"{json.dumps(name)}: {json.dumps(found)}" for name, found in sorted(results.items()))
    OUTPUT.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def table(results: Mapping[str, Any]) -> Iterator[str]:
    """A row for each run."""
    yield "| run | diversity, lowest and last | distance, lowest and last | contrast, last | collapsed | named after |"
    yield "|---|---:|---:|---:|---|---|"
    for name, found in sorted(results.items(), key=lambda item: (not item[1]["healthy"], item[0])):
        diversity, distance, contrast = (found[key] for key in (DIVERSITY, FEATURES, CONTRAST))
        named = ", ".join(f"{sign} {update}" for sign, update in found["signs"].items()) or "-"
        values = f"{min(diversity):.2f} {diversity[-1]:.2f} | {min(distance):.2f} {distance[-1]:.2f}"
        end = "yes" if collapsed(name, results) else "no"
        yield f"| {name} | {values} | {contrast[-1]:.2f} | {end} | {named} |"


if __name__ == "__main__":
    main()
