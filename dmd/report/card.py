"""The card of an exported pipeline: how it is used, what made it, how good it was, and whose licences bind it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dmd import methods
from dmd.config.training import Distill

FRONT = """---
library_name: diffusers
pipeline_tag: text-to-image
tags: [text-to-image, one-step, distillation]
---"""
USE = """    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained("path/to/this/folder")
    image = pipeline("a prompt", num_inference_steps=1, guidance_scale=0).images[0]

One step, guidance 0: the network is called once, and was never trained for more."""
TEACHER = """The weights derive from those of the teacher (its source sha256 is above), so its licence binds them; which
one that is no file says. For Stable Diffusion v1.5 it is CreativeML Open RAIL-M, whose restrictions on use have to be
passed on."""
PROMPTS = {  # kind of the source -> whose they are
    "laion": "The prompts are texts of LAION's metadata (CC BY 4.0); the pages they come from have terms of their own.",
    "coco": "The prompts are captions of COCO (CC BY 4.0).",
    "file": "The prompts are from a file of the user's own, whose licence no file says.",
}
CODE = "The code that made this folder is Apache-2.0; it grants nothing of either."
SETTINGS = ("optimisers", "schedule", "ema_decay", "adapter", "seed")  # besides the method's own


def card(
    provenance: Mapping[str, Any], facts: Mapping[str, Any], data: Mapping[str, Any], scores: Sequence[Path]
) -> str:
    """Markdown.

    Args:
        provenance: of the export: its spec (weights, experiment) and digests of inputs.
        facts: metadata of the generator.
        data: facts of the pairs or text states, `num_pairs` or `num_states`, `num_prompts`, and `prompts`, the section
            that these were made by.
        scores: files as stage evaluate writes them.
    """
    spec = provenance["spec"]
    parts = [
        FRONT,
        f"# {spec['experiment']}: a one-step text-to-image generator",
        f"Distilled from a Stable Diffusion teacher by: {_method(facts)}",
        f"## Use\n\n{USE}",
        f"## Scores\n\n{_scores(scores)}",
        f"## Training\n\n{_table(_training(facts))}",
        f"## Data\n\n{_table(_data(data))}",
        f"## Files\n\n{_table(_digests(provenance, facts))}",
        f"## Licence\n\n{_licence(data)}",
    ]
    return "\n\n".join(parts) + "\n"


def _scores(paths: Sequence[Path]) -> str:
    if not paths:
        return "None was measured when this folder was written."
    lines = ["| metric | value | std | samples | network calls | compared with |", "|---|---:|---:|---:|---:|---|"]
    for path in paths:
        found = json.loads(path.read_text())
        spread = "-" if found.get("std") is None else f"{found['std']:.3g}"
        reference = found.get("reference", {}).get("name", "-")
        calls = found.get("network_calls", "-")
        lines.append(
            f"| {found['metric']} | {found['value']:.4g} | {spread} | {found['num_samples']} | {calls} | {reference} |"
        )
    return "\n".join(lines)


def _licence(data: Mapping[str, Any]) -> str:
    return "\n\n".join(filter(None, [TEACHER, PROMPTS.get(data["prompts"].get("kind", "")), CODE]))


def _section(facts: Mapping[str, Any]) -> Distill:
    """Section `distill` that made a generator, defaults and all."""
    return Distill.model_validate({key: value for key, value in facts["spec"].items() if key in Distill.model_fields})


def _method(facts: Mapping[str, Any]) -> str:
    """The first line of the method's file: its name and its paper."""
    module = inspect.getmodule(methods.load(_section(facts).method.name))
    return (inspect.getdoc(module) or "").splitlines()[0]


def _training(facts: Mapping[str, Any]) -> dict[str, Any]:
    section = _section(facts)
    method, whole = section.method.model_dump(mode="json"), section.model_dump(mode="json")
    phases = method.pop("phases")
    updates = {"updates": sum(phase["updates"] for phase in phases), "phases": len(phases)}
    settings = {key: value for key, value in method.items() if value is not None and key != "name"}
    return {"method": method["name"]} | updates | settings | {key: whole[key] for key in SETTINGS if whole[key]}


def _data(data: Mapping[str, Any]) -> dict[str, Any]:
    named = {
        "num_pairs": "pairs",
        "num_states": "text states",
        "guidance": "guidance of the teacher",
        "network_calls": "network calls for a pair",
    }
    named |= {"first_timestep": "first timestep", "num_prompts": "prompts", "num_truncated": "prompts cut"}
    source = {key: value for key, value in data["prompts"].items() if key in ("kind", "threshold", "seed", "num")}
    return {title: data[key] for key, title in named.items() if key in data} | {"source of the prompts": source}


def _digests(provenance: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    found = {"teacher, source": facts.get("source_sha256"), **provenance["inputs"]}
    found = {name: digest for name, digest in found.items() if isinstance(digest, str)}
    spec = provenance["spec"]
    return {"weights": f"{spec['weights']}, float32"} | {f"{name} sha256": d for name, d in found.items()}


def _table(rows: Mapping[str, Any]) -> str:
    lines = [f"| {name} | {_text(value)} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(each)}" for key, each in value.items() if each is not None)
    return f"{value:g}" if isinstance(value, float) else str(value)
