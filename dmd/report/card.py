"""The model card of an exported pipeline: its use, its scores, its training and data, and the licences that apply."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dmd import methods
from dmd.config import printing
from dmd.config.training import Distill

FRONT = """---
library_name: diffusers
pipeline_tag: text-to-image
tags: [text-to-image, one-step, distillation]
---"""
USE = """    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained("path/to/this/folder")
    image = pipeline("a prompt", num_inference_steps=1, guidance_scale=0).images[0]

Use one step and guidance 0: the network is trained for a single call."""
TEACHER = """The weights derive from the teacher's weights (sha256 of its source: see Files), so the teacher's licence
applies to them. This export cannot tell which licence that is. Stable Diffusion v1.5 has CreativeML Open RAIL-M, whose
use restrictions must be passed on."""
PROMPTS = {  # kind of the prompt source -> licence of the prompts
    "laion": "The prompts are texts of LAION's metadata (CC BY 4.0); the pages they come from have their own terms.",
    "coco": "The prompts are captions of COCO (CC BY 4.0).",
    "file": "The prompts come from a file of the user; this export cannot tell their licence.",
}
CODE = "The code that made this folder is Apache-2.0; that licence covers neither the weights nor the prompts."
SETTINGS = ("optimisers", "schedule", "ema_decay", "adapter", "seed")  # shown besides those of the method


def card(
    provenance: Mapping[str, Any], facts: Mapping[str, Any], data: Mapping[str, Any], scores: Sequence[Path]
) -> str:
    """The card as markdown.

    Args:
        provenance: spec (weights, experiment) and input digests of the export.
        facts: metadata of the generator file.
        data: facts of the pairs or text states: `num_pairs` or `num_states`, `num_prompts`, and `prompts`, the
            configuration section of the prompts.
        scores: score files of stage evaluate.
    """
    spec = provenance["spec"]
    parts = [
        FRONT,
        f"# {spec['experiment']}: a one-step text-to-image model",
        f"Distilled from a Stable Diffusion teacher. Method: {_method(facts)}",
        f"## Use\n\n{USE}",
        f"## Scores\n\n{_scores(scores)}",
        f"## Training\n\n{_table(_training(facts))}",
        f"## Data\n\n{_table(_data(data))}",
        f"## Files\n\n{_table(_files(provenance, facts))}",
        f"## Licence\n\n{_licence(data)}",
    ]
    return "\n\n".join(parts) + "\n"


def _scores(paths: Sequence[Path]) -> str:
    if not paths:
        return "No score had been measured when this folder was written."
    lines = ["| metric | value | std | samples | network calls | reference |", "|---|---:|---:|---:|---:|---|"]
    for path in paths:
        score = json.loads(path.read_text())
        spread = "-" if score.get("std") is None else f"{score['std']:.3g}"
        reference = score.get("reference", {}).get("name", "-")
        calls = score.get("network_calls", "-")
        metric, source = printing.markdown(score["metric"]), printing.markdown(reference)
        lines.append(f"| {metric} | {score['value']:.4g} | {spread} | {score['num_samples']} | {calls} | {source} |")
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
    return {title: data[key] for key, title in titles.items() if key in data} | {"prompt source": source}


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
