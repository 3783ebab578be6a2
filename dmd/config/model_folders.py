"""Files that a folder of a saved model lacks and whose names are known: networks, weights, parts that an index lists.

Only names are looked at, and the lists of parts. What is in the other files is checked by the stage that reads them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator

from dmd.config.section_base import Section
from dmd.config.sections import Clip, DiffusersTeacher, StableDiffusionTeacher, TinyAutoencoder

DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model", "model"  # names of weights, without their suffix
MAX_INDEX = 1 << 24  # bytes


def lacking(section: Section) -> list[str]:
    """Paths that the folder of a section lacks; none if there is no such folder, or if it is of no saved model."""
    folder = getattr(section, "folder", "")
    if not isinstance(section, Clip | DiffusersTeacher | StableDiffusionTeacher | TinyAutoencoder):
        return []
    return [os.path.join(folder, path) for path in _of(section, folder)] if os.path.isdir(folder) else []


def _of(section: Section, folder: str) -> Iterator[str]:
    if isinstance(section, StableDiffusionTeacher):
        for name, stem in (("unet", DIFFUSERS), ("vae", DIFFUSERS), ("text_encoder", TRANSFORMERS)):
            yield from _network(folder, name, stem)
        yield from _absent(folder, "scheduler/scheduler_config.json")
        if not os.path.lexists(os.path.join(folder, "tokenizer/tokenizer.json")):
            yield from _absent(folder, "tokenizer/vocab.json", "tokenizer/merges.txt")
    elif isinstance(section, DiffusersTeacher):
        yield from _network(folder, "" if os.path.lexists(os.path.join(folder, "config.json")) else "unet", DIFFUSERS)
    else:
        yield from _network(folder, "", DIFFUSERS if isinstance(section, TinyAutoencoder) else TRANSFORMERS)


def _absent(folder: str, *names: str) -> Iterator[str]:
    yield from (name for name in names if not os.path.lexists(os.path.join(folder, name)))


def _network(folder: str, name: str, stem: str) -> Iterator[str]:
    """What the folder `name` of a network lacks: its configuration, its weights, parts of them."""
    place = os.path.join(folder, name)
    if os.path.lexists(place) and not os.path.isdir(place):
        return  # the stage says what it is
    names = os.listdir(place) if os.path.isdir(place) else []
    yield from _absent(folder, os.path.join(name, "config.json"))
    weights = [each for each in names if re.fullmatch(rf"{stem}\.(.+\.)?safetensors(\..+)?", each)]
    if not weights:
        yield os.path.join(name, f"{stem}.safetensors")
    for index in sorted(each for each in weights if each.endswith(".json")):
        parts = _parts(os.path.join(place, index))
        yield from _absent(folder, *(os.path.join(name, part) for part in parts))


def _parts(index: str) -> list[str]:
    """Files beside an index that it lists; none if it cannot be read, which the stage that reads it says."""
    try:
        with open(index, "rb") as stream:
            by_weight = json.loads(stream.read(MAX_INDEX))["weight_map"]
        parts = sorted({part for part in by_weight.values() if os.path.basename(part) == part not in ("", "..")})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
    return parts
