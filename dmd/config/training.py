"""What every training has besides its method: optimisers, schedule, precision, processes, cadence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_serializer, field_validator, model_validator

from dmd.config.messages import suggestion
from dmd.config.method import STUDENT, MethodSection
from dmd.config.methods import Denoising, Method
from dmd.config.section import Count, Decay, Many, Positive, Section, Weight, Whole, refuse, without_paths

CADENCE = ("checkpoint_every", "grid_every", "log_every", "tensorboard")  # how often it writes, not what it learns


class Optimiser(Section):
    """AdamW of one trained network."""

    kind: Literal["fused", "8bit"] = Field("fused", description="8bit: moments of a byte each, torchao's AdamW8bit")
    learning_rate: Positive = Field(5.0e-5, description="after warmup; a phase may scale it")
    weight_decay: Weight = Field(0.01, description="of AdamW")
    betas: Annotated[tuple[Decay, Decay], Field(strict=False)] = Field(
        (0.9, 0.999), description="decays of the two moments"
    )
    gradient_clip: Positive = Field(10.0, description="L2 norm")


class Schedule(Section):
    """Learning rates over updates."""

    warmup: Whole = Field(500, description="updates")
    decay: Literal["constant", "linear", "cosine"] = Field("constant", description="linear and cosine fall to 0")
    over: Literal["run", "phase"] = Field("run", description="what warmup and decay count: all updates, or a phase's")


class Compute(Section):
    """How passes of a network are computed."""

    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of passes; parameters stay float32")
    tf32: bool = Field(False, description="float32 products of GPUs from 10-bit factors")
    channels_last: bool = Field(False, description="memory layout of images, for GPUs")
    compile: bool = Field(False, description="torch.compile; the first passes take minutes")


class TrainingCompute(Compute):
    """How passes of a network are computed in a training, and what saves memory."""

    gradient_checkpointing: bool = Field(False, description="keep block inputs only; a pass more")
    micro_batch_size: Count | None = Field(None, description="images in a pass with gradient; null = the whole batch")
    shard_parameters: bool = Field(False, description="processes share weights, gradients and moments, too (FSDP2)")


class Adapter(Section):
    """LoRA: one frozen network is the teacher, and carries an adapter for each trained network."""

    rank: Count = Field(64, description="of the adapter of a layer")
    alpha: Positive | None = Field(None, description="an adapter counts alpha / rank; null = rank")
    targets: Annotated[Many[Annotated[str, Field(min_length=1)]], Field(min_length=1)] | None = Field(
        None, description="last parts of the names of Linear and Conv2d layers; null = all of them"
    )


class Training(Section):
    """One training of any method.

    `optimisers` is by role; keys that a role leaves out are the student's, then the method's defaults. Those that
    `schedule` leaves out are the method's defaults, too.
    """

    method: MethodSection = Field(description="what the student learns from")
    optimisers: dict[str, Optimiser] = Field({}, validate_default=True, description="by role")
    schedule: Schedule = Field(Schedule(), validate_default=True)
    ema_decay: Decay = Field(0.999, description="of the student's moving average, per update")
    seed: Whole = Field(0, description="of weights, noise and order of the data")
    processes: Count = Field(1, description="a GPU each; they share every batch")
    compute: TrainingCompute = TrainingCompute()
    checkpoint_every: Count = Field(1000, description="updates between checkpoints")
    log_every: Count = Field(1, description="updates between rows of the log")
    tensorboard: bool = Field(False, description="log rows and grids for TensorBoard, scratch")

    @field_validator("optimisers", mode="before")
    @classmethod
    def _by_role(cls, value: Any, info: ValidationInfo) -> Any:
        """Every trained role, whole: its own keys over the student's over the method's defaults."""
        method = info.data.get("method")
        if not isinstance(method, MethodSection) or not isinstance(value, dict):
            return value
        if not all(isinstance(entry, dict) for entry in value.values()):
            return value
        try:
            Optimiser.model_validate(shared := value.get(STUDENT, {}))
        except ValidationError:
            shared = {}  # its faults are named once, not for each role
        defaults = method.optimiser_defaults
        roles = {role: {**defaults.get(STUDENT, {}), **defaults.get(role, {}), **shared} for role in method.trained}
        return {role: {**roles.get(role, {}), **value.get(role, {})} for role in {**roles, **value}}

    @field_validator("schedule", mode="before")
    @classmethod
    def _scheduled(cls, value: Any, info: ValidationInfo) -> Any:
        """Its own keys over the method's defaults."""
        method = info.data.get("method")
        if isinstance(value, Schedule):
            value = value.model_dump(include=value.model_fields_set)
        if not isinstance(method, MethodSection) or not isinstance(value, dict):
            return value
        return {**method.schedule_defaults, **value}

    @field_serializer("optimisers")
    def _whole(self, value: dict[str, Optimiser]) -> dict[str, Any]:
        """Every key: what a role leaves out would be the student's or the method's, not the general default."""
        return {role: optimiser.whole() for role, optimiser in value.items()}

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
                yield f"compute.{switch}: method {name} cannot take it"

    def _uneven_batches(self) -> Iterator[str]:
        """Batches that the processes cannot share."""
        num, sharded = self.processes, self.compute.shard_parameters
        for key, size in self.method.batch_sizes().items():
            if size < num:
                yield f"processes: {num} cannot share method.{key} {size}"
            elif size % num and sharded:
                yield (
                    f"compute.shard_parameters: {num} processes work in step, but cannot have equal parts of "
                    f"method.{key} {size}"
                )

    def _memory(self) -> Iterator[str]:
        """Ways to spare memory that exclude each other."""
        if not self.compute.shard_parameters:
            return
        place = "compute.shard_parameters"
        if self.processes == 1:
            yield f"{place}: processes is 1, there is nobody to share with"
        if self.compute.compile:
            yield f"{place}: compile is not possible besides"
        if other := [role for role, optimiser in self.optimisers.items() if optimiser.kind != "fused"]:
            kind = self.optimisers[other[0]].kind
            yield f"{place}: optimisers.{other[0]}.kind is {kind}, but only fused works on shared moments"

    def spec(self) -> dict[str, Any]:
        """What differs from the defaults; the schedule whole where the method has defaults of its own."""
        own = {"schedule": self.schedule.whole()} if self.method.schedule_defaults else {}
        return super().spec() | own

    def learnt_from(self) -> dict[str, Any]:
        """The spec without cadence: what decides the weights."""
        return {key: value for key, value in self.spec().items() if key not in CADENCE}

    def cadence(self) -> dict[str, Any]:
        """What stands beside the spec, whose change reruns nothing."""
        return {key: value for key, value in self.spec().items() if key in CADENCE}


class TeacherTraining(Training):
    """The training of a teacher."""

    method: Denoising = Field(description="EDM's objective")


class Distill(Training):
    """The training of a student."""

    method: Method = Field(description="what the student learns from")
    start: str | None = Field(None, description="experiment whose teacher initialises the trained networks")
    grid_every: Count = Field(1000, description="updates between grids of images of the student")
    adapter: Adapter | None = None

    def _contradictions(self) -> Iterator[str]:
        yield from super()._contradictions()
        if self.adapter is not None and self.start is not None:
            yield f"start: {self.start}, but the network that carries distill.adapter is the teacher"
        if self.adapter is not None and "adapter" in self.method.refuses:
            yield f"adapter: method {self.method.name} cannot take one"
        if self.adapter is not None and getattr(self.method, "dropout", False):
            yield "adapter: goes without method.dropout, which would drop in the network that all roles share"

    def learnt_from(self) -> dict[str, Any]:
        """The spec without cadence and paths: what decides the weights."""
        return without_paths({key: value for key, value in super().learnt_from().items() if key != "start"})
