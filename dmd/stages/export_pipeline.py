"""Stage export_pipeline: a student of one or several calls as a folder for diffusers, with a model card."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dmd import torchvision_operators
from dmd.data import manifest as manifests
from dmd.data.prompts import Prompts
from dmd.jobs import job, reporting
from dmd.models import loading
from dmd.models.networks.unet2d_condition import GUIDANCE_WIDTH
from dmd.models.student_calls import Calls
from dmd.provenance import record, tensor_files
from dmd.report import card
from dmd.report.model_folder import WEIGHTS, FolderWriter
from dmd.sampling import call_schedulers


@dataclass(frozen=True)
class Layout:
    """The folder of a pipeline: its class, and name and class of its network.

    Attributes:
        others: further parts that are written.
        absent: parts that the class has, and the folder has not.
    """

    pipeline: str
    network: str
    network_class: str
    others: Mapping[str, tuple[str, str]]
    absent: tuple[str, ...]


LAYOUTS = {  # by kind of network
    "unet2d-condition": Layout(
        "StableDiffusionPipeline",
        "unet",
        "UNet2DConditionModel",
        {
            "text_encoder": ("transformers", "CLIPTextModel"),
            "tokenizer": ("transformers", "CLIPTokenizer"),
            "vae": ("diffusers", "AutoencoderKL"),
        },
        ("safety_checker", "feature_extractor"),
    ),
    "sd3": Layout(
        "StableDiffusion3Pipeline",
        "transformer",
        "SD3Transformer2DModel",
        {},
        (
            *("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3", "vae"),
            *("image_encoder", "feature_extractor"),
        ),
    ),
}


def run(
    *,
    generator: Path,
    text_encoder: Path | None = None,
    autoencoder: Path | None = None,
    prompts: Path | None = None,
    manifest: Path | None = None,
    states: Path | None = None,
    scores: list[Path] | None = None,
    output: Path,
    weights: str = "ema",
    calls: int | None = None,
    guidance: float = 1.0,
    experiment: str,
) -> None:
    """Writes the folder; `DiffusionPipeline.from_pretrained(folder)(prompt, num_inference_steps=K, guidance_scale=0)`
    then draws what stage sample draws with K calls, from the same noise.

    A student that takes the guidance as an input becomes a LatentConsistencyModelPipeline, whose `guidance_scale` is
    that input.

    A network of kind sd3 becomes a StableDiffusion3Pipeline without text encoders and autoencoder, which this package
    has not: it takes `prompt_embeds` and `pooled_prompt_embeds`, and gives latents.

    Args:
        generator: distill/generator.safetensors, of a teacher of kind stable-diffusion, or with a network of kind sd3.
        text_encoder, autoencoder: files of the teacher; not for sd3.
        prompts: prompts of the distillation, for the model card.
        manifest, states: pairs/manifest.parquet or states/manifest.parquet of the distillation, for the model card.
        scores: score files such as fid.json, for the model card, which leaves out those of another generator.
        output: export/pipeline/model_index.json; `dmd.config.rule_table.PIPELINE` lists the other files, which are
            beside and below it.
        weights: "ema", "raw" or "best".
        calls: number of network calls, for a student that supports several; None: that at the end of its training.
        guidance: of the samples, for the model card.
        experiment: name of the experiment, for the model card.

    Raises:
        ValueError: a damaged input, not a student of such a teacher, or calls that no scheduler of diffusers makes.
    """
    spec: dict[str, Any] = {"weights": weights, "experiment": experiment} | ({} if calls is None else {"calls": calls})
    spec |= {} if guidance == 1 else {"guidance": guidance}
    with record.writing(output):
        paths = {"generator": generator, "text_encoder": text_encoder, "autoencoder": autoencoder}
        inputs = record.check_inputs(**paths, manifest=manifest, states=states, prompts=prompts, scores=scores)
        scores = [path for path in scores or [] if _is_of(path, generator, inputs["generator"][str(generator)])]
        writer = FolderWriter(output.parent, "export_pipeline", inputs)
        student = _student(generator, weights, calls)
        layout, network = student.layout, student.facts["network"]
        scheduler = _scheduler(student, generator)
        missing = [name for name in ("text_encoder", "autoencoder") if layout.others and paths[name] is None]
        if missing:
            raise ValueError(f"{generator} needs --{missing[0].replace('_', '-')} of its teacher")
        config = {key: value for key, value in network["config"].items() if key[:1] != "_"}
        config |= {"time_cond_proj_dim": GUIDANCE_WIDTH} if student.takes_guidance else {}
        writer.write_json(f"{layout.network}/config.json", {"_class_name": layout.network_class, **config})
        writer.write_weights(f"{layout.network}/{WEIGHTS}", student.weights)
        writer.write_json("scheduler/scheduler_config.json", call_schedulers.config_of(scheduler))
        if text_encoder is not None and autoencoder is not None:
            writer.write_text_encoder(text_encoder)
            writer.write_autoencoder(autoencoder)
        provenance, data = record.provenance("export_pipeline", spec, inputs), _data(manifest, states, prompts)
        usage = _usage(student, scheduler, guidance)
        writer.write_text("README.md", card.card(provenance, student.facts, data, scores, usage))
        own = {
            "scheduler": ("diffusers", type(scheduler).__name__),
            layout.network: ("diffusers", layout.network_class),
        }
        parts = own | dict(layout.others) | {name: (None, None) for name in layout.absent}
        safety = {"requires_safety_checker": False} if "safety_checker" in parts else {}
        writer.write_json(output.name, {"_class_name": layout.pipeline, **safety, **parts})


class _Student(NamedTuple):
    """A student's file: weights under their names in diffusers, calls, metadata, and the layout of its folder."""

    weights: dict[str, torch.Tensor]
    calls: Calls
    facts: dict[str, Any]
    layout: Layout

    @property
    def takes_guidance(self) -> bool:
        return loading.guidance_range(self.facts) is not None


def _student(path: Path, weights: str, num: int | None) -> _Student:
    """The student that makes `num` calls."""
    tensors, facts = tensor_files.load(path)
    loading.check_facts(facts, path)
    layout = LAYOUTS.get(facts.get("network", {}).get("kind"))
    if facts["kind"] != "generator" or layout is None or "text" not in facts:
        raise ValueError(f"{path} is no generator of a teacher of kind stable-diffusion: a pipeline needs one")
    calls = loading.student_calls(facts, path, calls=num)
    kept = f"{weights}@{num}" if str(num) in facts.get("calls_kept", {}) else weights
    if not (state := tensor_files.part(f"{kept}.{layout.network}.", tensors)):
        raise ValueError(f"{path} holds no {kept!r} weights")
    if loading.guidance_range(facts):
        layout = replace(layout, pipeline="LatentConsistencyModelPipeline", absent=(*layout.absent, "image_encoder"))
    return _Student(state, calls, facts, layout)


def _is_of(score: Path, generator: Path, digest: str) -> bool:
    """Whether a score is of this generator; a line of the log where it is not."""
    if made := record.made_from(score, generator, digest):
        return made
    reporting.log(f"{score} is not of the present {generator}: the model card leaves it out")
    return False


def _scheduler(student: _Student, path: Path) -> Any:
    """The scheduler that makes the student's calls."""
    try:
        found = call_schedulers.find(student.calls, student.facts)
        if student.takes_guidance and type(found).__name__ != call_schedulers.LCM:
            name = type(found).__name__
            raise ValueError(f"LatentConsistencyModelPipeline, for guidance as an input, takes no {name}")
        return found
    except ValueError as error:
        num = len(student.calls.sigmas)
        raise ValueError(
            f"{path} makes {num} call{'s' * (num > 1)} that no pipeline of diffusers makes: {error}. It can be sampled "
            f"here{_advice(student)}"
        ) from error


def _advice(student: _Student) -> str:
    """How to train a student whose calls a pipeline makes, where there is a way."""
    flow = (student.facts.get("preconditioning") or {}).get("kind") == "flow"
    if student.calls.map != "denoiser":
        return ""
    if student.calls.between == "ode" and not flow and len(student.calls.sigmas) > 1:
        return "; with the levels of timesteps of DDIMScheduler in distill.method.times, a pipeline makes the calls"
    kind = "flow-match-euler" if flow else "lcm"
    return f"; method dmd2 with distill.method.times of kind {kind} trains a student for calls that a pipeline makes"


def _usage(student: _Student, scheduler: Any, guidance: float) -> card.Usage:
    """What the model card says about calls of the pipeline, from its class and the scheduler that is written."""
    layout, guidances = student.layout, loading.guidance_range(student.facts)
    torchvision_operators.ensure()
    import diffusers

    call = inspect.signature(getattr(diffusers, layout.pipeline).__call__).parameters
    return card.Usage(
        num=len(student.calls.sigmas),
        by_steps=call_schedulers.accepted_steps(scheduler),
        default_steps=call["num_inference_steps"].default,
        default_guidance=call["guidance_scale"].default,
        whole="vae" in layout.others,
        guidance=card.GuidanceInput(guidance, *guidances) if guidances else None,
    )


def _data(pairs: Path | None, states: Path | None, prompts: Path | None) -> dict[str, Any]:
    """Facts of the pairs or text states, their number, and the source of the prompts."""
    facts: dict[str, Any] = {}
    for path, count in ((pairs, "num_pairs"), (states, "num_states")):
        if path is not None:
            rows = manifests.read(path)
            facts |= {**rows.metadata["facts"], count: len(rows)}
    if prompts is None:
        return {**facts, "prompts": {}}
    texts = Prompts(prompts)
    return {
        **facts,
        "num_prompts": len(texts),
        "prompts": texts.metadata.get("spec", {}).get("source", {}),
    }


if __name__ == "__main__":
    job.main(run)
