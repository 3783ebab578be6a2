"""Prints jobs by rule, network calls, CPU time and disk of a run before it starts.

python workflow/scripts/plan.py [EXPERIMENT]    the plan of one experiment, or of the default target
python workflow/scripts/plan.py --record FILE   writes the rates of finished jobs, for use where there are none yet

CPU time comes from the benchmarks of earlier runs in results/, else from bench/results/rates.json: seconds per
unit of work, see workflow/scripts/rates.py.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "workflow" / "python"))
sys.path.append(str(ROOT))  # last, since a file named torch.py may lie there

from dmd.config import ConfigError, Configuration, Experiments, load, printing, unknown_experiment  # noqa: E402
from dmd.config.missing_files import Missing, listed, missing_files  # noqa: E402
from dmd.config.sections import GlyphDataset, IdxDataset, ImageDataset  # noqa: E402
from workflow.scripts.rates import Job, Rates, job_of, measured_rates, network_calls, num_images, rate_owner, work  # noqa: E402

SHARD_RULES = ("pairs", "sample")  # rules that make shards


def main() -> None:
    """Command line: see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="?", help="an experiment of config.yaml")
    parser.add_argument("--record", type=Path, help="write the rates of finished jobs to this file")
    parsed = parser.parse_args()
    try:
        config = load()
        experiments = Experiments(config)
        rates = measured_rates(experiments)
        sizes = {entry.path: entry.size for entry in config.inputs.values()}
        if parsed.record:
            parsed.record.write_text(json.dumps(rates, indent=1, sort_keys=True) + "\n")
        else:
            jobs, absent = planned(config, experiments, parsed.experiment)
            away, line = stored(experiments, jobs, config)
            print(table(experiments, [job for job in jobs if job not in away], rates, sizes) + line, flush=True)
            if absent:
                print(f"\n{listed(absent)}", flush=True)
            if parsed.experiment is not None and any(job.rule == "distill" for job in jobs):
                from workflow.scripts import memory  # imports torch, which the table does not need

                for entry in memory.plan(experiments, parsed.experiment):
                    print(entry, flush=True)
    except BrokenPipeError:  # the reader, such as `head`, closed the pipe; Python would flush stdout again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        sys.exit(printing.lines(f"error: {error}"))


def planned(config: Configuration, experiments: Experiments, experiment: str | None) -> tuple[list[Job], list[Missing]]:
    """The jobs of a dry run, and the files from outside that they need and that do not exist."""
    command = [str(Path(sys.executable).with_name("snakemake")), "-n", "-s", str(ROOT / "Snakefile")]
    if experiment is not None:
        if experiment not in experiments.merged:
            raise ConfigError(unknown_experiment(experiment, experiments.merged))
        ends = ("teacher", "pipeline", "pipeline_clip")  # of experiments without scores
        last = next((rule for rule in ends if experiments.has(experiment, rule)), "teacher")
        whole = experiments.has(experiment, "evaluate")
        artifact = f"{experiment}/fid.json" if whole else experiments.path(experiment, last)
        command.append(f"results/{artifact}")
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        said = (answer.stdout + answer.stderr).strip()
        raise ConfigError(said.partition("\nerror: ")[2] or f"the dry run failed\n{said}")
    absent = [
        each
        for path, each in missing_files(config).items()
        if re.search(rf"^    output: {re.escape(path)}( \(update\))?$", answer.stdout, re.M)
    ]
    jobs = [job_of(rule, Path(output)) for rule, output in first_outputs(answer.stdout) if rule != "missing"]
    return jobs, absent


def first_outputs(text: str) -> list[tuple[str, str]]:
    """Rule and first output of each job that a dry run prints; an output may have spaces in its path."""
    output = r"^    output: ([^\n]+?)(?: \(update\)|, results/[^\n]*)?$"
    return re.findall(rf"^(?:local)?rule (\w+):.*?{output}", text, re.M | re.S)


def stored(experiments: Experiments, jobs: list[Job], config: Configuration) -> tuple[set[Job], str]:
    """Jobs of `pairs` whose block a storage has, and a line that says so; nothing where there is no storage."""
    blocks = [job for job in jobs if job.rule == "pairs"]
    place = config.storage
    if place is None or not blocks:
        return set(), ""
    from dmd.data.storage import Storage

    paths = [Path("results", experiments.path(job.experiment, "pairs", job.block or (0, 0))) for job in blocks]
    try:
        sizes = Storage(place.settings()).sizes(paths)
    except ValueError as error:
        return set(), f"\nThe storage could not be asked for blocks of pairs: {error}"
    away = {job for job, size in zip(blocks, sizes, strict=True) if size is not None}
    line = f"\n{len(away)} blocks of pairs are in {place.prefix} and are not counted: their jobs only take them,"
    return away, f"{line} unless they were made from another teacher or spec." if away else ""


def disk(experiments: Experiments, job: Job) -> int | None:
    """Bytes of the shards of a job; None if the size of the images is unknown yet."""
    if job.rule not in SHARD_RULES:
        return 0
    extents = image_size(experiments, job.experiment)
    return None if extents is None else shard_bytes(experiments, job, *extents)


def shard_bytes(experiments: Experiments, job: Job, values: int, text: int) -> int:
    """Bytes of the shards of a job: per member a tar header, an npy header and the data, in blocks of 512.

    values, text: numbers of values of an image and of its text states.
    """
    section = experiments.section(job.experiment, job.rule)
    image = values * (2 if getattr(section, "dtype", "float32") == "float16" else 4)
    members = [8, image]  # label, image
    if job.rule == "pairs":
        members += [4 * values, *([2 * text] if text else [])]  # noise, text states
        members += [section.kept_states * image] if section.kept_states else []
    size = 512 * sum(1 + math.ceil((128 + member) / 512) for member in members)
    return num_images(experiments, job) * size


def image_size(experiments: Experiments, experiment: str) -> tuple[int, int] | None:
    """Values in an image and in its text states, from the teacher's file or the dataset; None if neither exists.

    A teacher of text that is not imported yet has the sizes in its folder, else those of Stable Diffusion v1: latents
    (4, 64, 64), text (77, 768).
    """
    path = Path("results", experiments.path(experiment, "teacher"))
    if path.is_file():
        from dmd.provenance import tensor_files  # torch

        metadata = tensor_files.load_metadata(path)
        return math.prod(metadata["shape"]), math.prod(metadata.get("text", {"none": 0}).values())
    teacher = experiments.section(experiment, "teacher")
    if teacher.kind == "stable-diffusion":
        return saved_sizes(Path(teacher.folder)) or (4 * 64 * 64, 77 * 768)
    if (dataset := experiments.sections(experiment).dataset) is None:
        return None
    if isinstance(dataset, ImageDataset | GlyphDataset):
        return dataset.channels * dataset.resolution**2, 0
    if isinstance(dataset, IdxDataset):
        return dataset.resolution**2, 0
    return {"digits": 64, "gaussian-mixture": 2}[dataset.kind], 0


def saved_sizes(folder: Path) -> tuple[int, int] | None:
    """Values in a latent and in its text states, from the folder of a Stable Diffusion; None if it does not say."""
    try:
        unet, text = (json.loads((folder / name / "config.json").read_text()) for name in ("unet", "text_encoder"))
        latent = unet["in_channels"] * unet["sample_size"] ** 2
        return int(latent), int(text.get("max_position_embeddings", 77) * text["hidden_size"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def table(experiments: Experiments, jobs: list[Job], rates: Rates, sizes: Mapping[str, int | None]) -> str:
    """The plan as text, one line per rule and one for all; `sizes` are bytes of files from outside, None = unknown."""
    stored = ROOT / "bench" / "results" / "rates.json"
    known: Rates = json.loads(stored.read_text()) if stored.exists() else {}
    rules = list(dict.fromkeys(job.rule for job in jobs))
    lines = [f"{'rule':21}{'jobs':>6}{'network calls':>16}{'CPU time':>12}{'disk':>15}"]
    for rule, chosen in [*((rule, [job for job in jobs if job.rule == rule]) for rule in rules), ("all", jobs)]:
        calls = sum(network_calls(experiments, job) for job in chosen)
        seconds, missing = 0.0, False
        for job in (each for each in chosen if each.experiment):
            name = rate_owner(experiments, job.experiment)
            rate = rates.get(name, {}).get(job.rule, known.get(name, {}).get(job.rule))
            seconds += (rate or 0.0) * work(experiments, job)
            missing |= rate is None
        known_sizes = [sizes[job.file] if job.file else disk(experiments, job) for job in chosen]
        size, more = sum(each or 0 for each in known_sizes) / 2**20, ">= " if None in known_sizes else ""
        time = "unknown" if missing and not seconds else f"{'>= ' if missing else ''}{seconds / 60:.1f} min"
        lines.append(f"{rule:21}{len(chosen):6}{calls:16,}{time:>12} {f'{more}{size:.1f}':>10} MiB")
    lines.append(
        "Network calls are images times calls. CPU time is of one core; disk is that of shards and fetched files."
    )
    lines.append(
        "unknown, >=: some jobs have no rate (no earlier run, none in bench/results/rates.json) or no known size."
    )
    return "\n".join(lines if jobs else ["There is nothing to do."])


if __name__ == "__main__":
    main()
