"""Teachers from a local Stable Diffusion folder: UNet2DConditionModel, noise levels, text states of the empty prompt.

Only JSON, text and safetensors are read; no code in the folder is run, nothing is downloaded.
"""

import re
from pathlib import Path
from typing import Any

import torch

from dmd.importers import autoencoder_files as autoencoders
from dmd.importers import pipeline_files as pipelines
from dmd.importers import text_files as texts
from dmd.models import outside_config
from dmd.models.networks import build
from dmd.models.preconditioning import preconditioning
from dmd.models.text_encoder import Text

NETWORK = "UNet2DConditionModel"
FLOW = "RectifiedFlowPipeline"  # InstaFlow's own class: it calls the UNet at 1000 t, and takes x0 - noise from it
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", FLOW)  # of the same parts
SCHEDULERS: tuple[str, ...] = (
    "PNDMScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
)
SCHEDULERS += ("EulerAncestralDiscreteScheduler", "LMSDiscreteScheduler", "DPMSolverMultistepScheduler")
SCHEDULERS += ("UniPCMultistepScheduler", "DEISMultistepScheduler", "LCMScheduler")
FOLDERS = {"unet": f"the {NETWORK}", "scheduler": "the noise levels", "vae": "the AutoencoderKL"}
FOLDERS |= {"text_encoder": "the CLIPTextModel", "tokenizer": "the CLIPTokenizer"}


def source_files(folder: Path, variant: str | None = None) -> list[Path]:
    """All files that the folder's digest covers, including those of the autoencoder and the text encoder.

    Args:
        variant: of the weights, see `dmd.importers.pipeline_files.network_files`.

    Raises:
        ValueError: a required file is missing or cannot be read; the message names it and its purpose.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    for name, what in FOLDERS.items():
        if not (folder / name).is_dir():
            raise ValueError(f"{folder / name} is missing: the sub-folder of {what}")
    index = folder / "model_index.json"
    paths = [
        *([index] if index.exists() else []),
        pipelines.existing_file(
            _scheduler(folder), "the configuration of the scheduler that the network was trained with"
        ),
        *pipelines.network_files(folder / "unet", NETWORK, variant=variant),
        *texts.source_files(folder, variant),
        *autoencoders.source_files(folder / "vae", variant=variant),
    ]
    pipelines.check_variant(folder, paths, variant)
    return paths


def load(folder: Path, variant: str | None = None) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights (`ema.*`, float32), text states of the empty prompt (`text.empty`, (L, E)), and facts.

    Facts: network, preconditioning, scheduler (with steps_offset and clip_sample as StableDiffusionPipeline sets
    them; none of a rectified flow, which uses no scheduler), sigma_data, sigma_min, sigma_max, shape of a latent,
    image_shape, num_classes 0, text {length, width}.

    Raises:
        ValueError: a file is missing, is of another class, or does not fit the others.
    """
    source_files(folder, variant)
    index = folder / "model_index.json"
    flow = index.exists() and _check_pipeline(index) == FLOW
    unet = folder / "unet"
    config = pipelines.network_config(unet / "config.json", NETWORK)
    _check_size(unet / "config.json")
    try:
        with torch.device("meta"):
            network: Any = build({"kind": "unet2d-condition", "config": config})
        pipelines.try_pass(unet / "config.json", network, torch.empty(1, 77, network.text_width, device="meta"))
        if flow:
            levels, scheduler = {"kind": "flow", "prediction": "x0 - noise"}, {}
        else:
            levels = pipelines.scheduler_preconditioning(_scheduler(folder), index, SCHEDULERS)
            saved = pipelines.scheduler_config(_scheduler(folder))
            scheduler = {"scheduler": {**saved, "steps_offset": 1, "clip_sample": False}}
        table = preconditioning(levels, sigma_data=1.0).table
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    assert table is not None  # kinds discrete and flow have one
    empty, text = _empty(folder, variant)
    if text["width"] != network.text_width:
        raise ValueError(f"{folder}: text states of width {text['width']}, the network takes {network.text_width}")
    shape = [network.channels, network.resolution, network.resolution]
    facts = {
        "network": {"kind": "unet2d-condition", "config": config},
        "preconditioning": levels,
        **scheduler,
        "sigma_data": 1.0,
        "shape": shape,
        "image_shape": autoencoders.image_shape(folder / "vae", shape),
        "num_classes": 0,
        "text": text,
        "sigma_min": float(table[1][0]),
        "sigma_max": float(table[1][-1]),
    }
    weights = pipelines.tensors_of(pipelines.network_files(unet, NETWORK, variant=variant))
    return {**{f"ema.unet.{name}": value for name, value in weights.items()}, "text.empty": empty}, facts


def _scheduler(folder: Path) -> Path:
    return folder / "scheduler" / "scheduler_config.json"


def _empty(folder: Path, variant: str | None) -> tuple[torch.Tensor, dict[str, int]]:
    """Text states (L, E) of the empty prompt, and their sizes."""
    state, facts = texts.load(folder, variant)
    text = Text(**facts["text_encoder"]).eval()
    text.load_state_dict(state)
    return text.encode([""]).states[0], facts["text"]


def _check_size(path: Path) -> None:
    """ValueError for a size that StableDiffusionPipeline would replace: below 64, saved before diffusers 0.9."""
    config = pipelines.read_json(path)
    release = re.match(r"0\.(\d+)\.", str(config.get("_diffusers_version")))
    size = config.get("sample_size")
    if release and int(release[1]) < 9 and isinstance(size, int) and size < 64:
        raise ValueError(
            f"{path}: sample_size {size} was saved by diffusers 0.{release[1]}, whose pipelines take 64 in place of "
            "smaller sizes: write 64, or a newer _diffusers_version if the size is right"
        )


def _check_pipeline(index: Path) -> Any:
    """The class of the pipeline; ValueError for another one than `PIPELINES`, or for other parts."""
    parts = pipelines.read_json(index)
    kind = parts.get("_class_name", PIPELINES[0])
    if kind not in PIPELINES:
        raise ValueError(f"{index}: _class_name {kind!r:.80} is none of {', '.join(PIPELINES)}")
    missing = {name: None if part == [None, None] else part for name, part in parts.items()}
    outside_config.check(index, missing, PIPELINES[0])
    for name, expected in {"unet": NETWORK, "vae": autoencoders.FULL}.items():
        if (part := parts.get(name)) != ["diffusers", expected]:
            raise ValueError(f"{index}: {name} is {part!r}, not {expected} of diffusers")
    for name, expected in {"text_encoder": "CLIPTextModel", "tokenizer": "CLIPTokenizer"}.items():
        part = parts.get(name)
        if part not in (["transformers", expected], ["transformers", f"{expected}Fast"]):
            raise ValueError(f"{index}: {name} is {part!r}, not {expected} of transformers")
    return kind
