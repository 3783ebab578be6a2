"""Prints what experiments cost on a cluster, from start to fid.json: jobs of SLURM, disk, and hours of a GPU.

python workflow/scripts/cost.py [EXPERIMENT...]    a Markdown table; by default of the paper's five experiments

Jobs and disk follow from config.yaml and profiles/slurm; no artifact has to exist. GPU hours are floating-point
operations of the networks (without LPIPS, decoders, features and recomputation) at an assumed rate, see --rate.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "workflow" / "python"))
sys.path.append(str(ROOT))  # last, since a file named torch.py may lie there

from dmd.config import RULES, Experiments, Json, load, printing, reading  # noqa: E402
from dmd.models.networks.published_architectures import SD15  # noqa: E402
from workflow.scripts.memory import RELEASED, architecture, forward_operations, section  # noqa: E402
from workflow.scripts.plan import SHARD_RULES, image_size, shard_bytes  # noqa: E402
from workflow.scripts.rates import Job, network_calls  # noqa: E402
from workflow.scripts.stand_in import image_passes  # noqa: E402

PAPER = {**RELEASED, "sd15-cfg3": SD15, "sd15-cfg8": SD15}  # experiment -> network of its teacher
RATE = 200.0  # TFLOP/s
COLUMNS = ("network calls", "jobs on GPUs", "jobs on CPUs", "pairs and samples")
HOURS = ("GPU hours: pairs", "distill", "samples")


def main() -> None:
    """Command line: see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", default=list(PAPER), help="experiments of config.yaml")
    parser.add_argument("--rate", type=float, default=RATE, help="TFLOP/s that a GPU sustains (%(default)s)")
    parsed = parser.parse_args()
    if not parsed.rate > 0:
        parser.error(f"--rate must be more than 0, got {parsed.rate}")
    try:
        experiments = Experiments(load())
        print("\n".join(table(experiments, parsed.experiments, rate=parsed.rate)), flush=True)
    except BrokenPipeError:  # the reader, such as `head`, closed the pipe; Python would flush stdout again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        sys.exit(printing.lines(f"error: {error}"))


def table(experiments: Experiments, names: list[str], *, rate: float) -> Iterator[str]:
    """A row for each experiment; hours of one GPU at `rate` TFLOP/s."""
    path = ROOT / "profiles" / "slurm" / "config.yaml"
    profile = reading.parse_yaml(path.read_text(), str(path))
    yield f"| experiment | {' | '.join(COLUMNS + HOURS)} |"
    yield f"|---|{'---:|' * len(COLUMNS + HOURS)}"
    for name in names:
        jobs = needed(experiments, name)
        calls = sum(network_calls(experiments, job) for job in jobs)
        counts = " | ".join(f"{num:,}" for num in (calls, *submitted(jobs, profile)))
        network, extents = known(experiments, name)
        size = sum(shard_bytes(experiments, job, *extents) for job in jobs if job.rule in SHARD_RULES)
        once = forward_operations(network)
        hours = " | ".join(f"{num * once / (rate * 1e12) / 3600:,.1f}" for num in passes(experiments, name, jobs))
        yield f"| `{name}` | {counts} | {size / 1e9:,.1f} GB | {hours} |"


def needed(experiments: Experiments, name: str, rule: str = "evaluate") -> set[Job]:
    """All jobs that an artifact needs if nothing is made yet, without downloads."""
    owner = experiments.owner(name, rule)
    blocks = experiments.blocks(name, rule) if RULES[rule].blocks else [None]
    found = {Job(rule, owner, block) for block in blocks}
    return found.union(*(needed(experiments, *source[::-1]) for source in experiments.upstream(name, rule)))


def submitted(jobs: set[Job], profile: Json) -> tuple[int, int]:
    """Numbers of SLURM jobs in GPU partitions and in the default one; the jobs of a group count as one."""
    default = profile["default-resources"]["slurm_partition"]
    elsewhere = {
        rule for rule, asked in profile["set-resources"].items() if asked.get("slurm_partition", default) != default
    }
    groups = dict(entry.split("=") for entry in profile["groups"])
    found = {(job.rule in elsewhere, groups.get(job.rule, job.rule), job.experiment, job.block) for job in jobs}
    num = sum(on_gpu for on_gpu, *_ in found)
    return num, len(found) - num


def known(experiments: Experiments, name: str) -> tuple[dict[str, Any], tuple[int, int]]:
    """The teacher's network, and the numbers of values of an image and of its text states."""
    network = PAPER.get(experiments.owner(name, "teacher")) or architecture(experiments, name)
    extents = image_size(experiments, name)
    if network is None or (extents is None and "channels" not in network):
        raise ValueError(f"{name}: the network is unknown, since the teacher's file does not exist")
    return network, extents or (network["channels"] * network["resolution"] ** 2, 0)


def passes(experiments: Experiments, name: str, jobs: set[Job]) -> tuple[int, int, int]:
    """Passes of a network over one image in pairs, distill (forward and backward count 3) and samples."""
    totals = dict.fromkeys(SHARD_RULES, 0)
    for job in jobs:
        if job.rule in SHARD_RULES:
            source = experiments.section(job.experiment, job.rule)
            student = getattr(source, "source", "teacher") == "generator"  # its guidance is an input
            guided = source.guidance != 1.0 and not student  # two passes per call
            totals[job.rule] += network_calls(experiments, job) * (1 + guided)
    distills = any(job.rule == "distill" for job in jobs)
    distilled = image_passes(section(experiments, name)) if distills else 0
    return totals["pairs"], distilled, totals["sample"]


if __name__ == "__main__":
    main()
