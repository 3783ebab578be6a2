"""What a schema cannot say of a configuration: keys that contradict each other, and names of nothing."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dmd import distill_section

Json = dict[str, Any]
NUM_SEEDS = 2**32  # torch's generator on the CPU keeps the low 32 bits of a seed
SCORED = ("reference", "sample", "evaluate")  # sections of an experiment that a table or chart can show
ODE_SOLVERS = ("heun", "euler")  # those with noise levels of their own; all others but one-step are schedulers
CHARTED = {"pairs": ("pairs",), "figure3": ("dataset",)}  # kind of a chart -> sections it needs besides


def suggestion(name: str, known: Iterable[str]) -> str:
    """` (did you mean "x"?)` where a known name is close, else nothing."""
    return "".join(f' (did you mean "{close}"?)' for close in difflib.get_close_matches(name, list(known), n=1))


def unknown_experiment(name: str, known: Iterable[str]) -> str:
    """The message for a name that is no experiment."""
    return f'unknown experiment "{name}"{suggestion(name, known)}; experiments are: {", ".join(sorted(known))}'


def contradictions(experiment: Json) -> Iterator[str]:
    """Faults between keys that each are fine alone, as `section.key: message`."""
    yield from _counts(experiment)
    yield from _seeds(experiment)
    distill = experiment.get("distill", {})
    if distill:
        yield from _memory(distill)
    for key in ("matching_batch_size", "regression_batch_size"):
        if distill and distill[key] < distill["processes"]:
            yield f"distill.processes: {distill['processes']} cannot share {key} {distill[key]}"
    dataset = experiment.get("dataset", {})
    if dataset.get("kind") == "gaussian-mixture":
        lengths = {key: len(dataset[key]) for key in ("means", "stds", "weights")}
        if len(set(lengths.values())) > 1:
            yield f"dataset: means, stds and weights differ in length: {lengths}"
    if experiment.get("teacher", {}).get("kind") == "gaussian-mixture" != dataset.get("kind"):
        yield f"teacher.kind: gaussian-mixture needs a dataset of that kind, not {dataset.get('kind')}"
    if reference := experiment.get("reference"):
        yield from _reference(reference, dataset)
    if experiment.get("evaluate", {}).get("clip") and "prompts" not in experiment.get("sample", {}):
        yield "evaluate.clip: needs sample.prompts, the captions that images are compared with"
    if dataset.get("num_held_out") == "all" and experiment.get("teacher", {}).get("kind") == "train":
        yield "dataset.num_held_out: all images are held out, but teacher.kind is train: none is left to train on"
    yield from distill_section.contradictions(experiment)
    yield from _noise_scales(experiment)
    yield from _texts(experiment)
    for index, phase in enumerate(experiment.get("distill", {}).get("phases", [])):
        if phase["fake_updates"] > 1 and (phase["train"] == "fake" or not phase["matching_scale"]):
            why = "train is fake: `updates` counts them" if phase["train"] == "fake" else "matching_scale is 0"
            yield f"distill.phases[{index}].fake_updates: {phase['fake_updates']} would not be made, {why}"
    levels = experiment.get("distill", {}).get("levels")
    if levels and not levels["min_index"] <= levels["max_index"] < levels.get("count", math.inf):
        ends = f"{levels['min_index']}..{levels['max_index']}"
        within = f" within 0..{levels['count'] - 1}" if "count" in levels else ""
        yield f"distill.levels: indices {ends} are no range{within}"


def unknown_names(experiments: Mapping[str, Json], config: Json) -> Iterator[str]:
    """Experiments that do not exist or lack what is asked of them, in `distill.start`, tables and charts."""
    uses: list[tuple[str, str, tuple[str, ...]]] = []  # place, experiment, sections it needs there
    for name, experiment in experiments.items():
        if (start := experiment.get("distill", {}).get("start")) is not None:
            uses.append((f"{name}.distill.start", start, ("teacher",)))
    for table, entry in config["tables"].items():
        uses += [(f"tables.{table}", name, SCORED) for row in entry["rows"] for name in row["experiments"]]
    for chart, entry in config["charts"].items():
        needs = (*SCORED, *CHARTED.get(entry["kind"], ()))
        points = [point for series in entry["series"] for point in series["points"]]
        uses += [(f"charts.{chart}", name, needs) for point in points for name in point]
    for place, name, needs in uses:
        if name not in experiments:
            yield f"{place}: {unknown_experiment(name, experiments)}"
        elif lacking := [section for section in needs if section not in experiments[name]]:
            yield f'{place}: experiment "{name}" cannot be used here: it has no section {", ".join(lacking)}'


def _reference(reference: Json, dataset: Json) -> Iterator[str]:
    if "moments" in reference and "against" in reference:
        yield f"reference.against: {reference['against']} is a split of a dataset, but reference.moments stands for it"
    elif "moments" not in reference and not dataset:
        yield "reference: needs a section dataset, or reference.moments with a file of mean and covariance"
    elif "against" in reference and dataset.get("num_held_out") == "all":
        yield f"reference.against: {reference['against']} is a split, but dataset.num_held_out is all"
    kind, levels = reference["features"]["kind"], reference["protocol"]["quantise"]
    if reference["protocol"]["resize"] and levels != 256:
        yield f"reference.protocol.resize: works on 8-bit images, so quantise must be 256, not {levels}"
    if kind == "inception" and levels != 256:
        yield f"reference.protocol.quantise: {levels}, but features of kind inception are those of 8-bit images: 256"


def unfit_inputs(inputs: Mapping[str, Json]) -> Iterator[str]:
    """Inputs of the same file, and inputs among the results, which are made and removed by the workflow.

    Files are spelt in one way, see `dmd.sources.placed`.
    """
    owners: dict[str, str] = {}
    for name, entry in inputs.items():
        if (other := owners.setdefault(entry["file"], name)) != name:
            yield f"inputs.{name}.file: {entry['file']} is that of inputs.{other}, too"
        if entry["file"].split("/")[0] == "results":
            yield f"inputs.{name}.file: {entry['file']} lies in results/, where only the workflow writes"


def unfit_storage(storage: Json | None) -> Iterator[str]:
    """Contradictions of section `storage`."""
    if storage is None:
        return
    if storage["prefix"].startswith("http") and not storage["keep"]:
        yield f"storage.keep: false, but {storage['prefix']} is to read only: shards made here have no other place"
    if storage["prefix"].startswith("http") and storage["endpoint"]:
        yield f"storage.endpoint: {storage['endpoint']}, but {storage['prefix']} names its server itself"
    if Path(os.path.relpath(storage["cache"])).parts[:1] == ("results",):
        yield f"storage.cache: {storage['cache']} lies in results/, where only the workflow writes"


def _noise_scales(experiment: Json) -> Iterator[str]:
    pairs, sigma = experiment.get("pairs"), experiment.get("distill", {}).get("sigma")
    if not pairs or sigma is None:
        return
    start = pairs["solver"].get("sigma_max")
    if start is None:
        yield f"distill.sigma: {sigma}, but {pairs['solver']['name']} starts at the teacher's last level: write null"
    elif sigma != start:
        yield (
            f"distill.sigma: {sigma} differs from pairs.solver.sigma_max {start}, "
            "but pairs teach the generator only at its own noise scale"
        )


def _texts(experiment: Json) -> Iterator[str]:
    """Prompts and guidance belong to teachers of text, schedulers to teachers that have one."""
    if (kind := experiment.get("teacher", {}).get("kind")) is None:
        return
    sample = experiment.get("sample", {})
    for needing, key, found in (("pairs", "prompts", experiment), ("sample", "sample.prompts", sample)):
        if needing in experiment and ("prompts" in found) != (kind == "stable-diffusion"):
            word = "needs texts that" if kind == "stable-diffusion" else "knows no text, but"
            yield f"{key}: a teacher of kind {kind} {word} {needing} are made of"
    for name in ("pairs", "sample"):
        section = experiment.get(name, {})
        if section and section["guidance"] != 1 and kind != "stable-diffusion":
            yield f"{name}.guidance: {section['guidance']}, but a teacher of kind {kind} knows no guidance"
        solver = section["solver"]["name"] if section else "heun"
        if solver not in (*ODE_SOLVERS, "one-step") and kind not in ("stable-diffusion", "diffusers"):
            yield f"{name}.solver.name: {solver} takes the scheduler of the teacher, which kind {kind} has none of"
    if sample and sample["from"] == "generator" and sample["guidance"] != 1:
        yield f"sample.guidance: {sample['guidance']}, but a one-step generator is drawn without"
    if sample and sample["from"] == "generator" and sample["lora"] is not None:
        yield f"sample.lora: {sample['lora']['file']} is added to a teacher, but sample.from is generator"


def _memory(distill: Json) -> Iterator[str]:
    """Ways to spare memory that exclude each other."""
    if distill["adapter"] is not None and distill["start"] is not None:
        yield f"distill.start: {distill['start']}, but the network that carries distill.adapter is the teacher"
    if not distill["compute"]["shard_parameters"]:
        return
    place, processes = "distill.compute.shard_parameters", distill["processes"]
    if processes == 1:
        yield f"{place}: distill.processes is 1, there is nobody to share with"
    keys = ("matching_batch_size", "regression_batch_size")
    sizes = {key: distill[key] for key in keys}
    for index, phase in enumerate(distill["phases"]):
        sizes |= {f"phases[{index}].{key}": phase[key] for key in keys if phase.get(key)}
    for key, size in sizes.items():
        if size % processes:
            yield f"{place}: {processes} processes work in step, but cannot have equal parts of {key} {size}"
    if distill["compute"]["compile"]:
        yield f"{place}: compile is not possible besides"
    if distill["optimiser"]["kind"] != "fused":
        yield f"{place}: optimiser.kind is {distill['optimiser']['kind']}, but only fused works on shared moments"


def _counts(experiment: Json) -> Iterator[str]:
    for name, key in (("pairs", "num_pairs"), ("sample", "num_samples")):
        section = experiment.get(name)
        if section and section[key] % section["shard_size"]:
            yield f"{name}.{key}: {section[key]} is not a multiple of shard_size {section['shard_size']}"
    sample = experiment.get("sample")
    if sample and (sample["from"] == "generator") != (sample["solver"]["name"] == "one-step"):
        wants = "one-step" if sample["from"] == "generator" else "heun or euler, or a scheduler"
        yield f"sample.solver.name: from {sample['from']} wants {wants}, not {sample['solver']['name']}"


def _seeds(experiment: Json) -> Iterator[str]:
    seeds: dict[str, range] = {}
    if pairs := experiment.get("pairs"):
        seeds["pairs"] = range(pairs["first_seed"], pairs["first_seed"] + pairs["num_pairs"])
    if sample := experiment.get("sample"):
        num = sample["num_samples"] * sample["repetitions"]
        seeds["sample"] = range(sample["first_seed"], sample["first_seed"] + num)
    for name, taken in seeds.items():
        if taken.stop > NUM_SEEDS:
            yield (
                f"{name}.first_seed: seeds {taken.start}..{taken.stop - 1} pass the last one, {NUM_SEEDS - 1}, "
                f"and would repeat those from 0 on; first_seed may be {NUM_SEEDS - len(taken)} at most"
            )
    if len(seeds) < 2:
        return
    drawn, taught = seeds["sample"], seeds["pairs"]
    if max(drawn.start, taught.start) < min(drawn.stop, taught.stop):  # min and max of a range would walk through it
        yield (
            f"sample.first_seed: seeds {drawn.start}..{drawn.stop - 1} of the samples overlap "
            f"{taught.start}..{taught.stop - 1} of the pairs, "
            "but nothing may be scored on noise it was regressed on"
        )
