"""Section `distill`: what of it decides the weights, which decoders it wants, what contradicts itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]
CADENCE = ("checkpoint_every", "grid_every", "log_every")  # how often it writes, not what it learns
WATCHING = ("tensorboard",)  # what it writes besides, where it is on
OFF: Json = {"guidance": 1.0, "match_pairs": False, "processes": 1, "adapter": None}
DECODERS = {"tiny": "tiny_autoencoder", "full": "autoencoder"}  # name -> the rule that makes it
LATENT = ("stable-diffusion",)  # kinds of teachers that always work on latents of prompts


def learnt_from(section: Json) -> Json:
    """The section without paths, cadence, and what is off: the same weights, the same spec."""
    distance, levels = dict(section["regression_distance"]), dict(section["levels"])
    distance.pop("file", None)
    if distance.get("decoder") == "none":
        del distance["decoder"]
    if levels.get("kind") == "karras":  # the kind of levels that name none
        del levels["kind"]
    phases = [{key: value for key, value in phase.items() if value is not None} for phase in section["phases"]]
    off = {key for key, value in OFF.items() if section[key] == value}
    kept = {key: value for key, value in section.items() if key not in {*CADENCE, *WATCHING, *off, "start"}}
    optimiser = dict(section["optimiser"])
    if optimiser["kind"] == "fused":  # what there was before there were others
        del optimiser["kind"]
    return {**kept, "regression_distance": distance, "levels": levels, "phases": phases, "optimiser": optimiser}


def cadence(section: Json) -> Json:
    """The numbers beside the spec, whose change reruns nothing."""
    return {key: section[key] for key in CADENCE} | {key: True for key in WATCHING if section[key]}


def decoders(section: Json) -> list[str]:
    """Rules of the autoencoders that a phase decodes latents with."""
    own = section["regression_distance"].get("decoder", "none")
    names = {own if phase["decoder"] is None else phase["decoder"] for phase in section["phases"]}
    return [rule for name, rule in DECODERS.items() if name in names]


def contradictions(experiment: Json) -> Iterator[str]:
    """Faults between keys that each are fine alone, as `section.key: message`."""
    section, pairs, teacher = (experiment.get(name, {}) for name in ("distill", "pairs", "teacher"))
    if not section:
        return
    for index, phase in enumerate(section["phases"]):
        yield from (f"distill.phases[{index}].{fault}" for fault in _phase(phase, section, pairs))
    if section["guidance"] != 1 and teacher and teacher["kind"] not in LATENT:
        yield f"distill.guidance: {section['guidance']}, but a teacher of kind {teacher['kind']} knows no empty prompt"
    if section["match_pairs"] and not (section["matching_weight"] and section["regression_weight"]):
        yield "distill.match_pairs: true, but matching_weight or regression_weight is 0: there is nothing to join"
    nodes, processes = experiment.get("resources", {}).get("distill", {}).get("nodes", 1), section["processes"]
    if processes % nodes:
        yield f"resources.distill.nodes: {nodes} cannot share {processes} processes evenly (distill.processes)"
    latent = teacher.get("kind") in LATENT or teacher.get("latent")
    for rule in decoders(section) if teacher else ():
        if rule == "tiny_autoencoder" and "tiny_autoencoder" not in teacher:
            yield "distill.regression_distance.decoder: tiny, but section teacher names no tiny_autoencoder"
        if not latent:
            yield f"distill.regression_distance.decoder: a teacher of kind {teacher['kind']} makes no latents"


def _phase(phase: Json, section: Json, pairs: Json) -> Iterator[str]:
    levels, last = section["levels"], phase["max_index"]
    if last is not None and not levels["min_index"] <= last < levels.get("count", math.inf):
        end = f"..{levels['count'] - 1}" if "count" in levels else " or more"
        yield f"max_index: {last} is not within {levels['min_index']}{end}"
    if pairs and phase["num_pairs"] is not None and phase["num_pairs"] > pairs["num_pairs"]:
        yield f"num_pairs: {phase['num_pairs']} of {pairs['num_pairs']}, the number in section pairs"
    for key in ("matching_batch_size", "regression_batch_size"):
        num, processes = phase[key], section["processes"]
        if num is not None and num < processes:
            yield f"{key}: {num} cannot be shared by {processes} processes"
        elif num is not None and num % processes and section["compute"]["shard_parameters"]:
            yield f"{key}: {num} has no equal parts for {processes} processes, as shard_parameters wants them"
