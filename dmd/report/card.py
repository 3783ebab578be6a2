"""The model card of an exported pipeline: its use, its scores, its training and data, and the licences that apply."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmd import methods
from dmd.config import printing
from dmd.config.training import Distill
from dmd.metrics.retrieval import TOP

FRONT = """---
library_name: diffusers
pipeline_tag: text-to-image
tags: [text-to-image, {tag}, distillation]
---"""
USE = """    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained("path/to/this/folder")
    image = pipeline("a prompt", num_inference_steps={num}, guidance_scale={guidance}).images[0]"""
USE_SD3 = """    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    folder = "path/to/this/folder"
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        "path/to/the/teacher",
        transformer=SD3Transformer2DModel.from_pretrained(folder, subfolder="transformer"),
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler"),
    )
    image = pipeline("a prompt", num_inference_steps={num}, guidance_scale={guidance}).images[0]"""
SD3_NOTE = """This folder has no text encoders and no autoencoder: those of the teacher are used. The pipeline takes the
noise between calls from torch's global generator: after torch.manual_seed(seed), a single image is the one of that
seed."""
TEACHER = """The weights derive from the teacher's weights (sha256 of its source: see Files), so the teacher's licence
applies to them. This export cannot tell which licence that is. If the teacher is Stable Diffusion v1.5, it is
CreativeML Open RAIL-M, whose use restrictions must be passed on."""
PROMPTS = {  # kind of the prompt source -> licence of the prompts
    "laion": "The prompts are texts of LAION's metadata (CC BY 4.0); the pages they come from have their own terms.",
    "coco": "The prompts are captions of COCO (CC BY 4.0).",
    "captions": "The prompts are captions of the images in the dataset; they have its terms.",
    "file": "The prompts come from a file of the user; this export cannot tell their licence.",
}
CODE = "The code that made this folder is Apache-2.0; that licence covers neither the weights nor the prompts."
SETTINGS = ("optimisers", "schedule", "ema_decay", "adapter", "seed")  # shown besides those of the method


@dataclass(frozen=True)
class GuidanceInput:
    """Guidance that the network takes as an input: that of the samples, and the range that it was trained on."""

    value: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Usage:
    """How the exported pipeline is called.

    Attributes:
        num: network calls of the student.
        by_steps: timesteps by number of steps, for every number that the scheduler accepts.
        default_steps, default_guidance: those of the pipeline's class, if a user names none.
        whole: whether the folder has text encoder and autoencoder; else it is one of Stable Diffusion 3.
        guidance: None if the network takes none.
    """

    num: int
    by_steps: Mapping[int, Sequence[float]]
    default_steps: int
    default_guidance: float
    whole: bool = True
    guidance: GuidanceInput | None = None


def card(
    provenance: Mapping[str, Any],
    facts: Mapping[str, Any],
    data: Mapping[str, Any],
    scores: Sequence[Path],
    usage: Usage,
) -> str:
    """The card as markdown.

    Args:
        provenance: spec (weights, experiment) and input digests of the export.
        facts: metadata of the generator file.
        data: facts of the pairs or text states: `num_pairs` or `num_states`, `num_prompts`, and `prompts`, the
            configuration section of the prompts.
        scores: score files of stage evaluate.
        usage: how the pipeline is called.
    """
    spec, one = provenance["spec"], usage.num == 1
    steps = "one-step text-to-image model" if one else f"text-to-image model of {usage.num} steps"
    parts = [
        FRONT.format(tag="one-step" if one else "few-step"),
        f"# {spec['experiment']}: a {steps}",
        f"Distilled from a text-to-image diffusion model. Method: {_method(facts)}",
        f"## Use\n\n{_use(usage)}",
        f"## Scores\n\n{_scores(scores)}",
        f"## Training\n\n{_table(_training(facts))}",
        f"## Data\n\n{_table(_data(data))}",
        f"## Files\n\n{_table(_files(provenance, facts))}",
        f"## Licence\n\n{_licence(data)}",
    ]
    return "\n\n".join(parts) + "\n"


def _use(usage: Usage) -> str:
    """The call, and what diffusers does with other arguments."""
    num, times = usage.num, usage.by_steps[usage.num]
    scale = f"{usage.guidance.value:g}" if usage.guidance else "0"
    how = "with guidance as an input" if usage.guidance else "without guidance"
    parts = [
        (USE if usage.whole else USE_SD3).format(num=num, guidance=scale),
        f"The network is trained for {_calls(num)} at timestep{'s' * (num > 1)} {_times(times)}, {how}. "
        f"Use num_inference_steps={num} and guidance_scale={scale}. {_wrong(usage)}",
        _guidance(usage),
    ]
    return "\n\n".join(parts if usage.whole else [*parts, SD3_NOTE])


def _guidance(usage: Usage) -> str:
    """What other values of guidance_scale do."""
    if (own := usage.guidance) is not None:
        return (
            f"guidance_scale is an input of the network, which was trained from {own.lowest:g} to {own.highest:g}. "
            f"Other values are accepted without a warning; the default is {usage.default_guidance:g}."
        )
    return (
        f"guidance_scale is off up to 1. Its default, {usage.default_guidance:g}, is accepted without a warning: it "
        "adds guidance, which the network was not trained for, by twice as many network calls."
    )


def _wrong(usage: Usage) -> str:
    """Which other numbers of steps diffusers accepts."""
    others = {num: times for num, times in usage.by_steps.items() if num != usage.num}
    default = f"its default of {usage.default_steps}"
    if not others:
        return f"diffusers refuses any other number, {default} included."
    what = "it calls the network as it was not trained for"
    if usage.default_steps in others:
        most = max(usage.by_steps)
        return f"diffusers accepts any other number up to {most} without a warning, {default} included: {what}."
    listed = "; ".join(f"{num} ({_times(times)})" for num, times in others.items())
    return (
        f"diffusers accepts these other numbers without a warning, with timesteps in brackets: {listed}. "
        f"With them {what}. It refuses all others, {default} included."
    )


def _calls(num: int) -> str:
    return "a single call" if num == 1 else f"{num} calls"


def _times(times: Sequence[float]) -> str:
    return ", ".join(f"{time:g}" for time in times)


def _scores(paths: Sequence[Path]) -> str:
    if not paths:
        return "No score had been measured when this folder was written."
    lines = ["| metric | value | std | samples | network calls | reference |", "|---|---:|---:|---:|---:|---|"]
    for path in paths:
        score = json.loads(path.read_text())
        reference = printing.markdown(score.get("reference", {}).get("name", "-"))
        numbers = {f", top {limit}": score[f"top{limit}"] for limit in TOP if f"top{limit}" in score} or {"": score}
        for suffix, number in numbers.items():
            metric = printing.markdown(score["metric"] + suffix)
            spread = "-" if number.get("std") is None else f"{number['std']:.3g}"
            ends = f"{score['num_samples']} | {score.get('network_calls', '-')} | {reference}"
            lines.append(f"| {metric} | {number['value']:.4g} | {spread} | {ends} |")
    return "\n".join(lines)


def _licence(data: Mapping[str, Any]) -> str:
    return "\n\n".join(filter(None, [TEACHER, PROMPTS.get(data["prompts"].get("kind", "")), CODE]))


def _section(facts: Mapping[str, Any]) -> Distill:
    """The section `distill` of a generator, with all defaults."""
    return Distill.model_validate({key: value for key, value in facts["spec"].items() if key in Distill.model_fields})


def _method(facts: Mapping[str, Any]) -> str:
    """The first line of the method's file: its name and its paper."""
    module = inspect.getmodule(methods.load(_section(facts).method.name))
    return (inspect.getdoc(module) or "").splitlines()[0]


def _training(facts: Mapping[str, Any]) -> dict[str, Any]:
    section = _section(facts)
    method, values = section.method.model_dump(mode="json"), section.model_dump(mode="json")
    phases = method.pop("phases")
    updates = {"updates": sum(phase["updates"] for phase in phases), "phases": len(phases)}
    settings = {key: value for key, value in method.items() if value is not None and key != "name"}
    return {"method": method["name"]} | updates | settings | {key: values[key] for key in SETTINGS if values[key]}


def _data(data: Mapping[str, Any]) -> dict[str, Any]:
    titles = {
        "num_pairs": "pairs",
        "num_states": "text states",
        "guidance": "guidance of the teacher",
        "network_calls": "network calls per pair",
    }
    titles |= {"first_timestep": "first timestep", "num_prompts": "prompts", "num_truncated": "truncated prompts"}
    source = {key: value for key, value in data["prompts"].items() if key in ("kind", "threshold", "seed", "num")}
    return {title: data[key] for key, title in titles.items() if key in data} | {"prompt source": source or "-"}


def _files(provenance: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    inputs = {"teacher source": facts.get("source_sha256"), **provenance["inputs"]}
    digests = {name: digest for name, digest in inputs.items() if isinstance(digest, str)}
    spec = provenance["spec"]
    return {"weights": f"{spec['weights']}, float32"} | {f"{name} sha256": digest for name, digest in digests.items()}


def _table(rows: Mapping[str, Any]) -> str:
    lines = [f"| {name} | {printing.markdown(_text(value), limit=printing.LINE)} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items() if item is not None)
    return f"{value:g}" if isinstance(value, float) else str(value)
