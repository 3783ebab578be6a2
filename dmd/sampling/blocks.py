"""Draws blocks of shards of images, for stages pairs and sample."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dmd.config import training
from dmd.data import manifest, shards, stored_blocks
from dmd.data.storage import Storage
from dmd.jobs import reporting, torch_setup
from dmd.models import published_lora
from dmd.models.compute import Compute, compile_network, set_tf32, slow_dtype
from dmd.provenance import pinned, record
from dmd.provenance.tensor_files import load_metadata
from dmd.sampling import drawing_memory, schedulers
from dmd.sampling.default_solver import within_range
from dmd.sampling.noise import sampling_sigmas
from dmd.sampling.ode_solvers import SOLVERS
from dmd.sampling.sampler import Sampler
from dmd.sampling.text_states import Texts

PLAIN: Any = training.Compute().with_defaults()  # what a spec without the key `compute` means


def draw_block(
    output: Path,
    *,
    stage_name: str,
    denoiser: Path,
    weights: str,
    spec: dict[str, Any],
    keep_noise: bool,
    prompts: Path | None = None,
    text_encoder: Path | None = None,
    lora: Path | None = None,
    storage: Storage | None = None,
) -> None:
    """Draws shards spec["first"] .. spec["last"], and writes the block file that lists them.

    An undamaged shard of the same spec, on the disk or in `storage`, is not drawn again: a job that was stopped, or a
    block that grew, draws only the missing shards. New shards are copied to `storage`. A batch never spans two shards,
    and the last batch of a shard is padded, so an item depends on its own seed only and a shard on no other shard.

    Args:
        keep_noise: whether shards hold the noise of each item, and its text states as float16, as pairs need them.
        prompts, text_encoder: for a denoiser whose condition is text.
        lora: file of an adapter that is added to the weights, scaled by spec["lora"]["scale"].

    Raises:
        ValueError: the denoiser's file is damaged, the solver has noise levels outside its range, or images are not
            finite.
    """
    torch_setup.set_threads(spec["threads"])
    if (prompts is None) != (text_encoder is None):
        raise ValueError("--prompts and --text-encoder must be given together, or neither")
    if (lora is None) != (spec.get("lora") is None):
        raise ValueError("--lora-file and `lora` of the spec must be given together, or neither")
    inputs = record.check_inputs(denoiser=denoiser, prompts=prompts, text_encoder=text_encoder, lora=lora)
    spec = spec | {"solver": within_range(spec["solver"], load_metadata(denoiser), denoiser, f"{stage_name}.solver")}
    shard_spec = {key: value for key, value in spec.items() if key not in manifest.RANGE_KEYS}
    origin = record.provenance(stage_name, shard_spec, inputs)
    numbers = range(spec["first"], spec["last"] + 1)
    paths = {number: output.parent.parent / f"{number:05d}.tar" for number in numbers}
    with record.writing(output):
        made = {number: _is_made(paths[number], origin, number) for number in numbers}
        provenance = record.provenance(stage_name, spec, inputs)
        if (
            storage
            and not all(made.values())
            and stored_blocks.take_block(storage, output, {paths[n]: made[n] for n in numbers}, provenance, inputs)
        ):
            return
        if storage:
            made = {n: stored_blocks.take_shard(storage, paths[n], origin, n, inputs, made=made[n]) for n in numbers}
        missing = [number for number in numbers if not made[number]]
        reporting.log(
            f"{len(missing)} shards of {spec['shard_size']} images to draw, {len(numbers) - len(missing)} exist already"
        )
        if missing:
            texts = None if prompts is None or text_encoder is None else (prompts, text_encoder)
            drawer = _Drawer(denoiser, weights, spec, keep_noise, texts, lora)
            _draw_shards(missing, paths, drawer, origin, inputs, storage)
        tars, tables, facts = {}, [], []
        for path in paths.values():
            tars[str(path)], table, shard_facts = stored_blocks.describe_shard(path, spec["first_seed"], storage)
            tables.append(table)
            facts.append(shard_facts)
        metadata = {**provenance, "facts": manifest.total_facts(facts)}
        with record.publish(output, stage=stage_name, inputs={**inputs, "shards": tars}) as temporary:
            manifest.write(temporary, pa.concat_tables(tables), metadata)
        if storage:
            stored_blocks.put_block(storage, output, [*paths.values()])


def _is_made(path: Path, origin: dict[str, Any], number: int) -> bool:
    head = shards.read_record(path) if path.is_file() else None
    if head is None or head.get("origin") != origin or head["shard"] != number or record.read(path) is None:
        return False
    try:
        record.check(path)
    except ValueError as error:
        reporting.log(f"drawing {path} again: {error}")
        return False
    return True


def _draw_shards(
    numbers: list[int],
    paths: dict[int, Path],
    drawer: "_Drawer",
    origin: dict[str, Any],
    inputs: record.Inputs,
    storage: Storage | None,
) -> None:
    size = drawer.spec["shard_size"]
    status = reporting.Progress(total=len(numbers) * size, unit="images")
    for number in numbers:
        with record.exclusive(paths[number], wait=True):  # a block of another size may hold the same shard
            if _is_made(paths[number], origin, number):
                continue
            items = list(drawer.items(range(number * size, (number + 1) * size), status))
            head = {"origin": origin, "shard": number, "facts": drawer.facts}
            with record.publish(paths[number], stage=origin["stage"], inputs=inputs) as temporary:
                shards.write(temporary, items, head)
            if storage and storage.writable:
                storage.upload(paths[number])


class _Drawer:
    """Draws the items of shards; `facts` come from the denoiser's file and from the last shard."""

    def __init__(
        self,
        denoiser: Path,
        weights: str,
        spec: dict[str, Any],
        keep_noise: bool,
        texts: tuple[Path, Path] | None,
        lora: Path | None,
    ) -> None:
        self.spec, self._keep_noise = spec, keep_noise
        self._dtype = np.dtype(spec.get("dtype", "float32"))
        device = torch_setup.choose_device(spec["device"])
        size, compute, guidance = spec["batch_size"], spec.get("compute", Compute()), spec.get("guidance", 1.0)
        set_tf32(compute)
        if warning := slow_dtype(compute, device):
            reporting.log(warning)
        options: dict[str, Any] = {"solver": spec["solver"], "batch_size": size, "guidance": guidance}
        options |= {"calls": spec.get("calls")}
        if lora is not None:
            pinned.check(lora, spec["lora"]["sha256"], key="sample.lora.sha256")
            options["adapter"] = published_lora.load(lora, scale=spec["lora"]["scale"])
        self._sampler = Sampler(denoiser, weights=weights, device=device, compute=compute, **options)
        num = (spec["last"] + 1) * spec["shard_size"]
        self._steps = trajectory_steps(spec["solver"], spec.get("kept_states", 0))
        self._texts = None if texts is None else Texts(*texts, device, num=num)
        drawing_memory.announce_drawing(self._sampler.denoiser, self._sampler.shape, size, device)
        compile_network(self._sampler.denoiser, compute)
        self.facts: dict[str, Any] = {
            "shape": list(self._sampler.shape),
            "num_classes": self._sampler.num_classes,
            "sigma": self._sampler.sigma,
            **_optional_facts(self._sampler, guidance),
            **({"trajectory_sigmas": _levels(spec["solver"], self._steps)} if self._steps else {}),
        }

    def items(self, indices: range, status: reporting.Progress) -> Iterator[tuple[int, shards.Item]]:
        """(global index, fields) of each item."""
        seeds = range(self.spec["first_seed"] + indices.start, self.spec["first_seed"] + indices.stop)
        rows = states = saved_states = None
        if self._texts is not None:
            rows, states, self.facts["num_truncated"] = self._texts.encode(indices)
            saved_states = states.half().numpy() if self._keep_noise else None
        index = indices.start
        options = {"labels": self.spec["labels"], "fixed_labels": rows, "states": states}
        for batch in self._sampler.batches(seeds, **options, trajectory_steps=self._steps):
            self.facts["network_calls"] = batch.network_calls
            for row, (noise, label, image) in enumerate(zip(batch.noise, batch.label, batch.image, strict=True)):
                fields = {"image": image.numpy().astype(self._dtype, copy=False), "label": label.numpy()}
                fields |= {"noise": noise.numpy()} if self._keep_noise else {}
                if batch.trajectory is not None:
                    fields["trajectory"] = batch.trajectory[row].numpy().astype(self._dtype, copy=False)
                fields |= {} if saved_states is None else {"text": saved_states[index - indices.start]}
                yield index, fields
                index += 1
            status.add(len(batch.image))


def trajectory_steps(solver: dict[str, Any], num: int) -> list[int]:
    """The `num` evenly spaced solver steps, counted from 1 and ending with the last, after which states are saved.

    Raises:
        ValueError: more states than steps, or a solver that is none of `SOLVERS`.
    """
    if not num:
        return []
    if solver["name"] not in SOLVERS:
        raise ValueError(
            f"pairs.kept_states: {num}, but solver {solver['name']} saves no states: use {' or '.join(SOLVERS)}"
        )
    steps = solver["steps"]
    if num > steps:
        raise ValueError(f"pairs.kept_states: {num} states, but the solver makes {steps} steps")
    return [(number * steps + num - 1) // num for number in range(1, num + 1)]


def _levels(solver: dict[str, Any], steps: list[int]) -> list[float]:
    """Noise levels of the states after these steps."""
    grid = {key: solver[key] for key in ("sigma_min", "sigma_max", "rho")}
    sigmas = sampling_sigmas(solver["steps"], **grid)
    return [float(sigmas[step]) for step in steps]


def _optional_facts(sampler: Sampler, guidance: float) -> dict[str, Any]:
    """Facts that not all samplers have: guidance, first timestep of a scheduler, shape of decoded images."""
    facts: dict[str, Any] = {} if guidance == 1 else {"guidance": guidance}
    if sampler.solver["name"] in schedulers.NAMES:
        facts["first_timestep"] = schedulers.first_timestep(sampler.metadata.get("scheduler"), sampler.solver)
        reporting.log(f"solver {sampler.solver['name']} begins at timestep {facts['first_timestep']:g}")
    if "image_shape" in sampler.metadata:
        facts |= {"codec": True, "image_shape": sampler.metadata["image_shape"]}
    return facts
