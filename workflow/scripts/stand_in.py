"""Stand-ins for a distillation whose files do not exist yet, from which `dmd.train.measured_update` measures its cost.

Memory is measured in the real architecture: on fake tensors, which need none, or on real ones where these are quicker.
Passes are counted on a network of a few weights, since their number does not depend on the architecture. Streams yield
zeros.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from dmd import methods
from dmd.config.method_base import STUDENT, Mode, PlannedPhase, Source
from dmd.config.methods.call_times import FlowEulerTimes, KarrasTimes, LcmTimes
from dmd.config.methods.lcm import KarrasSteps, TableSteps
from dmd.config.methods.levels import KarrasLevels, TeacherLevels
from dmd.config.section_base import SIGMA_MAX
from dmd.config.training import Distill
from dmd.methods.base import Distance, Facts, Part, Rows, Step
from dmd.methods.parts.decoded_distance import DecodedDistance
from dmd.methods.parts.distances import Lpips, l2_distance, lpips_shapes
from dmd.models.adapters import add_adapters, with_network
from dmd.models.autoencoder import Codec
from dmd.models.compute import DTYPES, Compute, prepare
from dmd.models.denoiser import Denoiser
from dmd.models.guidance import with_guidance
from dmd.models.lora import Adapter
from dmd.models.networks import build, extended, without_classes
from dmd.provenance.files import canonical_json
from dmd.sampling.drawing_memory import TEXT_LENGTH
from dmd.train.data import Stream
from dmd.train.measured_update import NUM_UPDATES, MeasuredStep, measured_steps, memory_plan, total_passes
from dmd.train.memory import distance_bytes
from dmd.train.parallel import BatchSplit
from dmd.train.trainer import Plan, Trainer, assemble

SMALL: dict[str, Any] = {"kind": "mlp", "channels": 1, "resolution": 1, "width": 2, "layers": 1, "num_classes": 0}
STREAMS = ("noise", "pairs", "trajectories", "images")
QUICK = 2 * 10**9  # multiplications of a forward pass, at most, up to which real tensors are quicker than fake ones
NUM_DRAWS = 16  # of the random values of an update, for the mean number of passes where it depends on them


@dataclass(frozen=True)
class Zeros:
    """A stream of zeros, with text states of `text_width`, or without labels if that is 0.

    Attributes:
        num_states: of a path, for stream trajectories.
    """

    shape: tuple[int, ...]
    text_width: int
    num_states: int

    def rows(self, part: Part, position: int, mine: slice, random: torch.Generator) -> Rows:
        """Rows of zeros; see `dmd.train.data.Stream`."""
        num = mine.stop - mine.start
        label = torch.zeros(num, TEXT_LENGTH, self.text_width) if self.text_width else torch.full((num,), -1)
        if part.group > 1:
            return {
                "image": torch.zeros(num, part.group, *self.shape),
                "label": torch.full((num, part.group), -1),
            }
        noise = torch.zeros(num, *self.shape)
        if part.stream == "trajectories":
            states = torch.zeros(num, self.num_states, *self.shape)
            return {"noise": noise, "trajectory": states, "levels": torch.zeros(num, self.num_states), "label": label}
        return {"noise": noise, "image": torch.zeros(num, *self.shape), "label": label}


def passes(distill: Distill) -> list[MeasuredStep]:
    """Every kind of step of a distillation with its passes; its memory figures are those of a tiny network."""
    plain = distill.model_copy(update={"adapter": None, "compute": type(distill.compute)()})
    draws = NUM_DRAWS if distill.method.random_passes else 1
    return measured_steps(*_trainer(plain, SMALL), draws=draws)


def image_passes(distill: Distill) -> int:
    """Passes of a network over one image in a whole distillation; one with its backward pass counts 3."""
    return sum(total_passes(passes(distill)).values())


def batch_passes(distill: Distill) -> int:
    """Passes as in `image_passes`, over a batch of the largest size that occurs."""
    steps = passes(distill)
    largest = max(part.size for each in steps for part in each.parts.values())
    return round(sum(total_passes(steps).values()) / largest)


def needed(network: Mapping[str, Any], distill: Distill, codecs: tuple[str, ...] = ()) -> dict[str, int]:
    """Bytes by purpose on each GPU; class embeddings, a vector per image, are left out.

    Args:
        network: of all denoisers.
        codecs: arguments, in canonical JSON, of each `Codec` that decodes latents for the image distance.
    """
    trainer, steps = _measured(canonical_json(network), _memory_of(distill).model_dump_json())
    split = BatchSplit(0, distill.processes, distill.compute.micro_batch_size)
    whole = replace(trainer, training=distill, split=split)
    distance, shape = distill.method.distance(), trainer.method.facts.shape
    side = cast("int | None", getattr(distance, "size", None))

    def taken(num: int) -> int:
        return max(_saved_bytes(side, shape, num, codec, distill.compute.dtype) for codec in codecs or (None,))

    with FakeTensorMode():
        return memory_plan(whole, steps, taken)


@cache
def _saved_bytes(lpips: int | None, shape: tuple[int, ...], num: int, codec: str | None, dtype: str) -> int:
    """Bytes that a distance of the regression loss saves for `num` images or latents; its weights do not matter.

    Args:
        lpips: side in pixels at which LPIPS sees images; None is the squared or absolute error.
        shape: (C, H, W) of an image or latent.
        codec: arguments of the `Codec` that decodes latents, as canonical JSON; None if nothing is decoded.
        dtype: "float32" or "bfloat16", for passes of the decoder.
    """
    shapes = lpips_shapes() if lpips is not None else ()  # before FakeTensorMode: imports packages with real tensors
    with FakeTensorMode():
        distance: Distance = l2_distance
        if lpips is not None:
            trunk, heads = ({name: torch.empty(size) for name, size in group.items()} for group in shapes)
            distance = Lpips(trunk, heads, pooling="average", size=lpips)
        if codec is not None:
            decoder = Codec(**json.loads(codec)).requires_grad_(False).eval()
            decoder.dtype = DTYPES[dtype]
            distance = DecodedDistance(distance, decoder)
        return distance_bytes(distance, shape, num)


def _memory_of(distill: Distill) -> Distill:
    """The keys that determine the memory of passes: phases with different steps, precision, gradient checkpointing."""
    kept = {name: getattr(distill.compute, name) for name in ("dtype", "gradient_checkpointing")}
    method, told = distill.method, dict[tuple[object, ...], PlannedPhase]()
    plan = Plan(method.plan()[0])
    for phase in plan.phases:
        clocks = map(plan.clock, range(phase.first, min(phase.first + NUM_UPDATES, phase.stop)))
        steps = {_sized(step) for clock in clocks for step in methods.load(method.name).steps(method, clock)}
        told.setdefault((frozenset(steps), method.losses(phase.config)), phase)
    phases = tuple(phase.config for phase in told.values())
    return Distill(
        method=method.model_copy(update={"phases": phases}),
        adapter=distill.adapter,
        compute=type(distill.compute)(**kept),
        optimisers={},
    )


def _sized(step: Step) -> Step:
    """A step without `among`, which does not affect memory."""
    return replace(step, parts=tuple(replace(part, among=None) for part in step.parts))


@cache
def _measured(network: str, distill: str) -> tuple[Trainer, list[MeasuredStep]]:
    """A trainer and its measured steps; arguments are JSON, so that results can be cached."""
    training, architecture = Distill.model_validate_json(distill), json.loads(network)
    # Methods compute noise levels on real tensors, which they may read, and use them on fake ones.
    quick = training.compute.dtype == "float32" and _most_multiplications(architecture) <= QUICK
    mode = contextlib.nullcontext() if quick else FakeTensorMode(allow_non_fake_inputs=True)
    with mode, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # of the moving average's copy
        trainer, streams = _trainer(training, architecture)
        return trainer, measured_steps(trainer, streams)


def _most_multiplications(network: Mapping[str, Any]) -> int:
    """Weights times pixels: no forward pass of one image multiplies more often."""
    with torch.device("meta"):
        built: Any = build(without_classes(network))
    return built.resolution**2 * sum(parameter.numel() for parameter in built.parameters())


def _trainer(distill: Distill, network: Mapping[str, Any]) -> tuple[Trainer, dict[str, Stream]]:
    """A trainer of the method on networks of one architecture, and streams of zeros."""
    training = distill.model_copy(update={"method": _with_own_levels(distill.method)})
    compute = cast(Compute, distill.compute.model_dump())
    first = _denoiser(network, compute)
    built: Any = first.network
    width = int(getattr(built, "text_width", 0))
    shape = (built.channels, built.resolution, built.resolution)
    facts = Facts(shape, 0, 0.5, text=bool(width), sigma_max=SIGMA_MAX, network=network)
    modules = _modules(training, network, first, facts)
    empty = torch.zeros(TEXT_LENGTH, width) if width else torch.tensor(-1)
    for name, role in training.method.roles().items():
        if role.guidance != 1 and not role.guidance_input:
            modules[name] = with_guidance(cast(Denoiser, modules[name]), empty, role.guidance)
    distances = dict.fromkeys(training.method.decoders(), l2_distance)
    with unset_fake_temporarily():
        trainer = assemble(training, modules, facts, distances=distances, split=BatchSplit(), start=False)
    num_states = training.method.roles()[STUDENT].states
    return trainer, {name: Zeros(shape, width, num_states) for name in STREAMS}


def _modules(training: Distill, network: Mapping[str, Any], first: Denoiser, facts: Facts) -> dict[str, nn.Module]:
    """Networks by role, without guidance; with adapters, one network carries those of all changing roles."""
    compute, roles = cast(Compute, training.compute.model_dump()), training.method.roles()
    old = [name for name, role in roles.items() if role.source is not Source.NEW]
    made: dict[str, nn.Module] = {}
    if training.adapter is not None:
        changing = [name for name in old if roles[name].mode is not Mode.FROZEN]
        with torch.device("meta"):  # peft moves new layers to the device of the others, which fails with fake tensors
            first = _denoiser(network, compute)
            views = add_adapters(first.network, cast(Adapter, training.adapter.model_dump()), changing, seed=0)
        _place_on_cpu(first.network)
        adapted = dict(zip(changing, views[1:], strict=True))
        made = {name: with_network(first, adapted.get(name, views[0])) for name in old}
    else:
        made = {name: _denoiser(extended(network, **roles[name].additions()), compute) for name in old}
    kind = methods.load(training.method.name)
    return {
        name: made[name] if name in made else prepare(kind.new_network(training.method, name, facts), compute)
        for name in roles
    }


def _place_on_cpu(network: nn.Module) -> None:
    """Replaces tensors on the meta device by zeros on the CPU."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                zeros = torch.zeros_like(parameter, device="cpu")
                module._parameters[name] = nn.Parameter(zeros, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.zeros_like(buffer, device="cpu")


def _denoiser(network: Mapping[str, Any], compute: Compute) -> Denoiser:
    found = Denoiser(build(without_classes(network)), sigma_data=0.5).eval()
    prepare(found, compute)
    return found


def _with_own_levels(method: Any) -> Any:
    """The method with Karras levels in place of those of the teacher's file and scheduler, which may not exist."""
    levels, times = getattr(method, "levels", None), getattr(method, "times", None)
    changed: dict[str, Any] = {"levels": KarrasLevels()} if isinstance(levels, TeacherLevels) else {}
    if isinstance(levels, TableSteps):
        changed["levels"] = KarrasSteps(kind="karras")
    if isinstance(times, LcmTimes | FlowEulerTimes):
        changed["times"] = KarrasTimes(kind="karras")
    return method.model_copy(update=changed)
