"""Stage features: what the feature network, and CLIP, see in one block of samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmd import loading
from dmd.artifacts import manifest, record, shards
from dmd.artifacts import tensors as tensor_files
from dmd.artifacts.prompts import Prompts
from dmd.metrics.clip import Clip
from dmd.metrics.features import FeatureNetwork, eight_bit, extract, quantise
from dmd.metrics.moments import Moments
from dmd.networks.autoencoder import Codec
from dmd.stages import clip_files, feature_files, stage

DECODED = 4  # latents at once: each takes gigabytes at 512 x 512 pixels


@dataclass(frozen=True)
class Judge:
    """CLIP, and the captions that the samples were made of.

    Attributes:
        prefix: what each caption begins with.
    """

    clip: Clip
    captions: Prompts
    prefix: str

    def __call__(self, image: Tensor, label: Tensor) -> Tensor:
        """Cosines (B,) of images in [-1, 1] and the captions of rows `label` (B,)."""
        texts = [self.prefix + text for text in self.captions.rows(label.tolist())]
        return self.clip(eight_bit(quantise(image, 256)), texts)


def run(
    *,
    block: Path,
    reference: Path,
    output: Path,
    network: Path | None = None,
    autoencoder: Path | None = None,
    clip_network: Path | None = None,
    captions: Path | None = None,
    features: dict[str, Any],
    protocol: dict[str, Any],
    batch_size: int,
    threads: int = 1,
    device: str = "cpu",
    clip: dict[str, Any] | None = None,
) -> None:
    """Writes features, predicted classes, labels and moment sums (count, sum, outer) of a block of samples.

    With `clip` also the cosine (`clip`) of each image, at its own size, and its caption.

    Args:
        block: table of a block of sample shards, all of one repetition; each shard is checked against its
            digest.
        reference: the file the samples will be compared with; features and protocol must be the same.
        network: weights of the feature network, where its kind has any.
        autoencoder: decodes samples that are latents.
        clip_network, captions: folder of a CLIPModel, and the texts that the samples were made of; for `clip`.
        clip: {"sha256": of the folder's files, null = any, "prefix": what each caption begins with, "name"}.

    Raises:
        ValueError: a damaged input, a reference of other features or protocol, a block of several
            repetitions, latents without an autoencoder, or a part of `clip` without the others.
    """
    stage.set_threads(threads)
    spec = {
        "features": features,
        "protocol": protocol,
        "batch_size": batch_size,
        "threads": threads,
        "device": device,
        **({"clip": clip} if clip else {}),
    }
    if len({clip is None, clip_network is None, captions is None}) > 1:
        raise ValueError("clip, --clip-network and --captions belong together: give all or none")
    with record.exclusive(output):
        inputs = record.check_inputs(block=block, reference=reference)
        real = tensor_files.load_metadata(reference)
        extractor, identity = feature_files.load(network, features, modes=real["modes"])
        inputs |= record.check_inputs(network=network, autoencoder=autoencoder, captions=captions)
        place = stage.choose_device(device)
        extractor.to(place)
        if real["features"] != identity or real["protocol"] != protocol:
            raise ValueError(
                f"{reference} holds {real['features']} under {real['protocol']}, but the spec asks for "
                f"{identity} under {protocol}"
            )
        samples = manifest.read(block)
        facts = {"features": identity, "protocol": protocol, **_origin(samples)}
        codec = _codec(samples, autoencoder, place)
        judge = None
        if clip and clip_network and captions:
            judged, known, digests = clip_files.load(clip_network, sha256=clip["sha256"])
            judge = Judge(judged.to(place), Prompts(captions), clip["prefix"])
            inputs["clip"] = digests
            facts["clip"] = {**known, "prefix": clip["prefix"]}
        found = _extract(samples, extractor, protocol, batch_size, codec=codec, judge=judge)
        with record.publish(output, stage="features", inputs=inputs) as temporary:
            tensor_files.write(temporary, found, {**record.provenance("features", spec, inputs), **facts})


def _codec(samples: manifest.Manifest, path: Path | None, device: torch.device) -> Codec | None:
    """What decodes the samples; None where they are images."""
    if not samples.metadata["facts"].get("codec"):
        return None
    if path is None:
        raise ValueError(f"{samples.path} holds latents: --autoencoder is needed to see images")
    return loading.load_codec(path).to(device)


@torch.no_grad()
def _decoded(latent: Tensor, codec: Codec | None) -> Tensor:
    """Images (B, C, H, W) on the CPU, a few at a time."""
    if codec is None:
        return latent
    place = next(codec.parameters()).device
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        return torch.cat([codec.decode(part.to(place)).cpu() for part in latent.split(DECODED)])


def _extract(
    samples: manifest.Manifest,
    extractor: FeatureNetwork,
    protocol: dict[str, Any],
    batch_size: int,
    *,
    codec: Codec | None = None,
    judge: Judge | None = None,
) -> dict[str, Tensor]:
    """The file's tensors."""
    num_batches = -(-len(samples.table) // batch_size)
    values, predicted, labels, cosines = [], [], [], []
    batches = stage.progress(_batches(samples, batch_size), total=num_batches, unit="batches")
    for stored, label in batches:
        image = _decoded(stored, codec)
        part, classes = extract(extractor, image, protocol["quantise"], protocol["resize"])
        values.append(part)
        predicted.append(classes)
        labels.append(label)
        cosines += [judge(image, label)] if judge else []
    found = torch.cat(values)
    moments = Moments.of(found)
    return {
        "features": found,
        "predicted": torch.cat(predicted),
        "label": torch.cat(labels),
        "count": torch.tensor(moments.count),
        "sum": moments.sum,
        "outer": moments.outer,
        **({"clip": torch.cat(cosines)} if judge else {}),
    }


def _batches(samples: manifest.Manifest, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (B, C, H, W) and labels (B,) of the block in order; batches do not end where shards do."""
    images: list[np.ndarray] = []
    labels: list[int] = []
    for part in samples.shards:
        with shards.Shard(part.path, size=part.size, sha256=part.sha256) as shard:
            for _, item in shard.items():
                images.append(item["image"].astype(np.float32))
                labels.append(int(item["label"]))
                if len(images) == batch_size:
                    yield torch.from_numpy(np.stack(images)), torch.tensor(labels)
                    images, labels = [], []
    if images:
        yield torch.from_numpy(np.stack(images)), torch.tensor(labels)


def _origin(samples: manifest.Manifest) -> dict[str, Any]:
    """Which repetition the block belongs to and how its samples were made."""
    spec, rows = samples.metadata["spec"], samples.table["index"].to_numpy()
    num_samples = spec["num_samples"]
    first, last = int(rows.min()), int(rows.max())
    repetition = first // num_samples
    if last // num_samples != repetition:
        raise ValueError(
            f"{samples.path} holds samples {first} to {last}: repetitions of {num_samples} meet in one block"
        )
    return {
        "repetition": repetition,
        "first_index": first,
        "count": len(rows),
        "num_samples": num_samples,
        "first_seed": spec["first_seed"] + repetition * num_samples,
        "labels": spec["labels"],
        "network_calls": samples.metadata["facts"]["network_calls"],
    }


if __name__ == "__main__":
    stage.main(run)
