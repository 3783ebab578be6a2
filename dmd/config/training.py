"""Settings of every training besides its method: optimisers, schedule, precision, processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, ValidationInfo, field_serializer, field_validator, model_validator

from dmd.config.messages import suggestion
from dmd.config.method_base import STUDENT, MethodSection
from dmd.config.methods import Method
from dmd.config.methods.denoising import Denoising
from dmd.config.section_base import (
    Batch,
    Count,
    Decay,
    Integer,
    Many,
    Positive,
    Scale,
    Section,
    Seed,
    Weight,
    Whole,
    refuse,
    without_paths,
)

CADENCE = ("checkpoint_every", "grid_every", "log_every", "tensorboard")  # keys that do not change the weights


class Optimiser(Section):
    """AdamW of one trained network."""

    kind: Literal["fused", "8bit"] = Field("fused", description="torch's AdamW, or torchao's with 8-bit moments")
    learning_rate: Positive = Field(5.0e-5, description="after warmup; a phase may scale it")
    weight_decay: Weight = Field(0.01, description="of AdamW")
    betas: Annotated[tuple[Decay, Decay], Field(strict=False)] = Field(
        (0.9, 0.999), description="decays of the two moments"
    )
    gradient_clip: Positive = Field(10.0, description="largest L2 norm of the gradient")


class Schedule(Section):
    """Learning-rate schedule."""

    warmup: Whole = Field(500, description="updates of linear warm-up")
    decay: Literal["constant", "linear", "cosine"] = Field("constant", description="linear and cosine fall to 0")
    over: Literal["run", "phase"] = Field("run", description="run: one schedule for all updates; phase: one per phase")


class Compute(Section):
    """How passes of a network are computed."""

    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of passes; parameters stay float32")
    tf32: bool = Field(False, description="TF32 for float32 matrix products and convolutions on GPUs")
    channels_last: bool = Field(False, description="memory layout of images, for GPUs")
    compile: bool = Field(False, description="torch.compile; the first passes take minutes")


class TrainingCompute(Compute):
    """How passes of a network are computed in a training, and what saves memory."""

    gradient_checkpointing: bool = Field(False, description="save memory: recompute blocks in the backward pass")
    micro_batch_size: Batch | None = Field(None, description="images per pass with gradients; null = the whole batch")
    shard_parameters: bool = Field(
        False, description="each process holds a part of weights, gradients and moments (FSDP2)"
    )


class Adapter(Section):
    """LoRA: the trained networks are adapters on one frozen network, the teacher's."""

    rank: Annotated[Integer, Field(ge=1, le=2**14)] = Field(64, description="rank of each layer's adapter")
    alpha: Scale | None = Field(None, description="an adapter is scaled by alpha / rank; null = rank")
    targets: Annotated[Many[Annotated[str, Field(min_length=1)]], Field(min_length=1)] | None = Field(
        None, description="Linear and Conv2d layers, by the last parts of their names; null = all"
    )


class Training(Section):
    """One training of any method.

    Keys that an optimiser does not set are the student's, else the method's defaults; keys that `schedule` does not set
    are the method's defaults.
    """

    method: MethodSection = Field(description="training method")
    optimisers: dict[str, Optimiser] = Field({}, validate_default=True, description="by role")
    schedule: Schedule = Field(Schedule(), validate_default=True)
    ema_decay: Decay = Field(0.999, description="decay of the student's moving average, per update")
    seed: Seed = Field(0, description="seed of initial weights, noise and order of the data")
    processes: Annotated[Integer, Field(ge=1, le=10**5)] = Field(
        1, description="number of processes with one GPU each; every batch is split among them"
    )
    compute: TrainingCompute = TrainingCompute()
    checkpoint_every: Count = Field(1000, description="updates between checkpoints")
    log_every: Count = Field(1, description="updates between rows of the log")
    tensorboard: bool = Field(False, description="also write the log, and grids of distill, for TensorBoard")

    @field_validator("optimisers", mode="before")
    @classmethod
    def _by_role(cls, value: Any, info: ValidationInfo) -> Any:
        """Every trained role with all keys: its own, else the student's, else the method's defaults."""
        method = info.data.get("method")
        if not isinstance(method, MethodSection) or not isinstance(value, dict):
            return value
        if not all(isinstance(entry, dict) for entry in value.values()):
            return value
        try:
            Optimiser.model_validate(shared := value.get(STUDENT, {}))
        except ValidationError:
            shared = {}  # so that its faults are reported once, not for each role
        defaults = method.optimiser_defaults
        roles = {role: {**defaults.get(STUDENT, {}), **defaults.get(role, {}), **shared} for role in method.trained}
        return {role: {**roles.get(role, {}), **value.get(role, {})} for role in {**roles, **value}}

    @field_validator("schedule", mode="before")
    @classmethod
    def _with_defaults(cls, value: Any, info: ValidationInfo) -> Any:
        """The schedule's keys, else the method's defaults."""
        method = info.data.get("method")
        if isinstance(value, Schedule):
            value = value.model_dump(include=value.model_fields_set)
        if not isinstance(method, MethodSection) or not isinstance(value, dict):
            return value
        return {**method.schedule_defaults, **value}

    @field_serializer("optimisers")
    def _all_keys(self, value: dict[str, Optimiser]) -> dict[str, Any]:
        """All keys: a missing one would not get the general default, but the student's or the method's value."""
        return {role: optimiser.with_defaults() for role, optimiser in value.items()}

    @model_validator(mode="after")
    def _fits(self) -> Training:
        refuse(self._contradictions())
        return self

    def _contradictions(self) -> Iterator[str]:
        yield from self._odd_roles()
        yield from self._uneven_batches()
        yield from self._memory()

    def _odd_roles(self) -> Iterator[str]:
        name, trained = self.method.name, self.method.trained
        for role in self.optimisers:
            if role not in trained:
                close, known = suggestion(role, trained), ", ".join(trained)
                yield f"optimisers.{role}: method {name} trains no {role}{close}; it trains {known}"
        for switch in set(self.method.refuses) & set(TrainingCompute.model_fields):
            if getattr(self.compute, switch) != TrainingCompute.model_fields[switch].default:
                yield f"compute.{switch}: method {name} does not support it"
        if "processes" in self.method.refuses and self.processes > 1:
            yield f"processes: {self.processes}, but method {name} cannot split a batch"

    def _uneven_batches(self) -> Iterator[str]:
        """Batches that the processes cannot share evenly."""
        num, sharded = self.processes, self.compute.shard_parameters
        for key, size in self.method.batch_sizes().items():
            if size < num:
                yield f"processes: {num} cannot share method.{key} {size}"
            elif size % num and sharded:
                yield (
                    f"compute.shard_parameters: {num} processes need equal parts, but method.{key} {size} "
                    "is not divisible"
                )

    def _memory(self) -> Iterator[str]:
        """Ways to save memory that exclude each other."""
        if not self.compute.shard_parameters:
            return
        key = "compute.shard_parameters"
        if self.processes == 1:
            yield f"{key}: processes is 1, but it needs several"
        if self.compute.compile:
            yield f"{key}: it cannot be combined with compile"
        if other := [role for role, optimiser in self.optimisers.items() if optimiser.kind != "fused"]:
            kind = self.optimisers[other[0]].kind
            yield f"{key}: optimisers.{other[0]}.kind is {kind}, but only fused works with it"

    def spec(self) -> dict[str, Any]:
        """The keys that differ from their defaults; all of the schedule if the method has its own defaults."""
        own = {"schedule": self.schedule.with_defaults()} if self.method.schedule_defaults else {}
        return super().spec() | own

    def weight_spec(self) -> dict[str, Any]:
        """The spec without cadence: the keys that determine the weights."""
        return {key: value for key, value in self.spec().items() if key not in CADENCE}

    def cadence(self) -> dict[str, Any]:
        """The keys of `CADENCE`, whose change reruns nothing."""
        return {key: value for key, value in self.spec().items() if key in CADENCE}

    def with_cadence(self, cadence: Mapping[str, Any] | None) -> Self:
        """The same training with other keys of `CADENCE`."""
        return type(self).model_validate({**self.spec(), **(cadence or {})})


class Monitor(Section):
    """Measurements of the student during its training, against images of the teacher.

    The student draws with its moving average, from fixed noise and conditions.
    """

    every: Count | None = Field(
        None, description="updates between measurements; null: as 1.5 % of the network passes allow, at most 50 in all"
    )
    num_images: Annotated[Integer, Field(ge=4, le=10**5)] = Field(80, description="images of a measurement")
    seeds: Annotated[Integer, Field(ge=4, le=10**5)] = Field(
        8, description="images of one class or prompt, which differ in their noise; without either, all do"
    )
    features: Literal["reference"] | None = Field(
        "reference", description="features of the distance: reference.features; null: images averaged to 8x8 pixels"
    )
    decoder: Literal["full", "tiny", "none"] = Field(
        "full", description="of latents: the teacher's autoencoder, teacher.tiny_autoencoder, or none: as they are"
    )
    clip: bool = Field(False, description="also compare images with their prompts, by the CLIP of evaluate.clip")
    best: Literal["distance", "same_noise", "clip"] | None = Field(
        "distance",
        description="the number by which sample.weights: best is chosen: distance to the teacher's images, mean "
        "distance of images from the same noise (one call from the teacher's first level), or CLIP; null: these "
        "weights are not kept",
    )

    @model_validator(mode="after")
    def _fits(self) -> Monitor:
        refuse(self._contradictions())
        return self

    def _contradictions(self) -> Iterator[str]:
        if self.num_images < self.seeds:
            yield f"num_images: {self.num_images} is less than seeds {self.seeds}, the images of one condition"
        if self.best == "clip" and not self.clip:
            yield "best: clip, but clip is false"


class TeacherTraining(Training):
    """The training of a teacher."""

    method: Denoising = Field(description="EDM's objective")


class Distill(Training):
    """The training of a student."""

    method: Method = Field(description="method of distillation")
    start: str | None = Field(None, description="experiment whose teacher initialises the networks; null = this one")
    grid_every: Count = Field(1000, description="updates between grids of images of the student")
    adapter: Adapter | None = None
    monitor: Monitor | None = Field(Monitor(), description="measurements of the student during training; null = none")

    def _contradictions(self) -> Iterator[str]:
        yield from super()._contradictions()
        if self.adapter is not None and self.start is not None:
            yield f"start: {self.start}, but with distill.adapter all networks start from the teacher"
        if self.adapter is not None and "adapter" in self.method.refuses:
            yield f"adapter: method {self.method.name} does not support it"
        if self.adapter is not None and any(role.guidance_input for role in self.method.roles().values()):
            remedy = ": set method.embedded to false" if hasattr(self.method, "embedded") else ""
            yield f"adapter: it is part of the teacher's network, which does not take the guidance as an input{remedy}"
        if self.adapter is not None and getattr(self.method, "dropout", False):
            yield "adapter: it cannot be combined with method.dropout, since all roles share one network"

    def weight_spec(self) -> dict[str, Any]:
        """The spec without cadence and paths: the keys that determine the weights."""
        return without_paths({key: value for key, value in super().weight_spec().items() if key != "start"})
