"""Prints the GPU memory, disk and floating-point operations that a distillation needs, before it starts.

python workflow/scripts/memory.py EXPERIMENT...   GPU memory of experiments, as configured and with other settings;
                                                   minutes for one whose released teacher is not there yet
python workflow/scripts/memory.py --paper         Markdown tables of the paper's three experiments on pixels

Passes are counted on fake tensors, without weights and without memory.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "workflow" / "python"))
sys.path.append(str(ROOT))  # last, since a file named torch.py may lie there

from dmd.config import Experiments, load, printing  # noqa: E402
from dmd.config.sections import DECODERS  # noqa: E402
from dmd.config.training import Distill, TrainingCompute  # noqa: E402
from dmd.models.networks import build, without_classes  # noqa: E402
from dmd.models.networks.published_architectures import CIFAR10, IMAGENET64  # noqa: E402
from dmd.provenance import tensor_files  # noqa: E402
from dmd.provenance.files import canonical_json  # noqa: E402
from dmd.sampling.drawing_memory import TEXT_LENGTH  # noqa: E402
from workflow.scripts.plan import SHARD_RULES, shard_bytes  # noqa: E402
from workflow.scripts.rates import Job, calls_per_image  # noqa: E402
from workflow.scripts.stand_in import image_passes, needed  # noqa: E402

GIB = 2**30
RELEASED: dict[str, dict[str, Any]] = {  # experiment -> network of its teacher, whose file need not be there
    "cifar10-uncond": CIFAR10 | {"num_classes": 0},
    "cifar10-cond": CIFAR10,
    "imagenet64": IMAGENET64,
}
VARIANTS = {
    "float32": TrainingCompute(),
    "bfloat16": TrainingCompute(dtype="bfloat16"),
    "bfloat16, checkpointed": TrainingCompute(dtype="bfloat16", gradient_checkpointing=True),
    "bfloat16, checkpointed, micro batches of 16": TrainingCompute(
        dtype="bfloat16", gradient_checkpointing=True, micro_batch_size=16
    ),
}


def main() -> None:
    """Command line: see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", help="experiments of config.yaml")
    parser.add_argument("--paper", action="store_true", help="the paper's experiments")
    parsed = parser.parse_args()
    try:
        if parsed.paper:
            shipped = Experiments(load(ROOT / "config.yaml"))
            print("\n".join([*paper(shipped), "", *operations(shipped)]))
        elif not parsed.experiments:
            parser.error("name an experiment, or give --paper")
        if parsed.experiments:
            experiments = Experiments(load())
            for name in parsed.experiments:
                print("\n".join(plan(experiments, name, released=True)))
    except (ValueError, OSError) as error:
        sys.exit(printing.lines(f"error: {error}"))


def section(experiments: Experiments, name: str) -> Distill:
    """Section `distill` of an experiment."""
    found: Distill = experiments.section(name, "distill")
    return found


def plan(experiments: Experiments, name: str, *, released: bool = False) -> Iterator[str]:
    """Memory of one experiment's distillation by purpose; from 1 GiB on, also its total with other settings."""
    distill, network = section(experiments, name), architecture(experiments, name, released=released)
    if network is None:
        yield f"memory of {name}: unknown until its teacher's file, which holds the network, exists"
        return
    codecs = autoencoders(experiments, name, distill)
    found = needed(network, distill, codecs)
    yield f"memory of {name} on each of {distill.processes} GPUs, GiB: {sum(found.values()) / GIB:.3g} at least"
    yield from (f"  {size / GIB:8.3g}  {purpose}" for purpose, size in found.items())
    for variant, compute in VARIANTS.items() if sum(found.values()) >= GIB else ():
        total = sum(needed(network, distill.model_copy(update={"compute": compute}), codecs).values())
        yield f"  {total / GIB:8.3g}  in all with {variant}"


def paper(shipped: Experiments) -> Iterator[str]:
    """The paper's experiments as a table: GiB on each GPU, and GB of disk."""
    yield f"| experiment | GPUs | as in `config/paper.yaml` | {' | '.join(VARIANTS)} | pairs, disk | samples, disk |"
    yield f"|---|---:|{'---:|' * (len(VARIANTS) + 3)}"
    for name, network in RELEASED.items():
        distill, values = section(shipped, name), network["channels"] * network["resolution"] ** 2
        disks = [
            sum(shard_bytes(shipped, Job(rule, name, block), values, 0) for block in shipped.blocks(name, rule))
            for rule in SHARD_RULES
        ]
        for processes in (1, 7):
            settings = [
                {"compute": compute, "processes": processes} for compute in (distill.compute, *VARIANTS.values())
            ]
            totals = [sum(needed(network, distill.model_copy(update=each)).values()) for each in settings]
            cells = [f"{total / GIB:.1f} GiB" for total in totals] + [f"{size / 1e9:.1f} GB" for size in disks]
            yield f"| `{name}` | {processes} | {' | '.join(cells)} |"


def operations(shipped: Experiments) -> Iterator[str]:
    """Floating-point operations of networks in the paper's experiments; a backward pass counts as two forward ones."""
    yield "| experiment | forward pass of an image | all pairs | one update | all updates |"
    yield "|---|---:|---:|---:|---:|"
    for name, network in RELEASED.items():
        forward, distill, pairs = forward_operations(network), section(shipped, name), Job("pairs", name, None)
        whole = image_passes(distill) * forward
        updates = sum(phase.updates for phase in distill.method.phases)
        drawn = shipped.section(name, "pairs").num_pairs * calls_per_image(shipped, pairs) * forward
        cells = f"{forward / 1e9:.1f} G | {drawn / 1e18:.2f} E | {whole / updates / 1e12:.0f} T"
        yield f"| `{name}` | {cells} | {whole / 1e18:.0f} E |"


def forward_operations(network: dict[str, Any]) -> int:
    """Floating-point operations of a forward pass of one image; a multiplication with its addition counts as two."""
    plain = sdpa_kernel(SDPBackend.MATH)  # the counter misses products inside other attention kernels
    with FakeTensorMode(), FlopCounterMode(display=False) as counter, torch.no_grad(), plain:
        built: Any = build(without_classes(network))
        width = getattr(built, "text_width", 0)
        condition = torch.zeros(1, TEXT_LENGTH, width) if width else torch.full((1,), -1)
        built(torch.zeros(1, built.channels, built.resolution, built.resolution), torch.zeros(1), condition)
    return counter.get_total_flops()


def autoencoders(experiments: Experiments, name: str, distill: Distill) -> tuple[str, ...]:
    """Arguments, in canonical JSON, of the autoencoders that a distillation uses and whose files exist."""
    rules = [DECODERS[decoder] for decoder in distill.method.decoders() if decoder in DECODERS]
    paths = [Path("results", experiments.path(name, rule)) for rule in rules]
    return tuple(canonical_json(tensor_files.load_metadata(path)["autoencoder"]) for path in paths if path.is_file())


def architecture(experiments: Experiments, name: str, *, released: bool = False) -> dict[str, Any] | None:
    """The network of student and fake denoiser, from the teacher's file, the configuration or, if asked, `RELEASED`."""
    source = experiments.section(name, "distill").start or name
    path = Path("results", experiments.path(source, "teacher"))
    if path.is_file():
        return tensor_files.load_metadata(path).get("network")
    teacher = experiments.section(source, "teacher")
    while teacher.kind == "experiment":  # a student has the network that it started from
        source = experiments.section(teacher.name, "distill").start or teacher.name
        teacher = experiments.section(source, "teacher")
    if teacher.kind != "train":
        return RELEASED.get(experiments.owner(source, "teacher")) if released else None
    dataset = experiments.section(source, "dataset")
    known = {"digits": (1, 8, 10), "gaussian-mixture": (2, 1, 0)}
    own = getattr(dataset, "channels", 1), getattr(dataset, "resolution", None), 0
    channels, resolution, classes = known.get(dataset.kind, own)
    return {**teacher.network.with_defaults(), "channels": channels, "resolution": resolution, "num_classes": classes}


if __name__ == "__main__":
    main()
