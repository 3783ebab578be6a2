"""Stage features: features of one block of samples, and their CLIP cosine similarities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmd.data import manifest
from dmd.importers import clip_files, feature_files
from dmd.importers.clip_files import CaptionScorer
from dmd.jobs import job, reporting, torch_setup
from dmd.metrics.features import FeatureNetwork, extract
from dmd.metrics.moments import Moments
from dmd.provenance import record, tensor_files
from dmd.sampling.drawn_images import SampleImages


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

    With `clip` it also writes `clip`: the cosine similarity of each image, not resized by `protocol`, and its caption.

    Args:
        block: table of a block of sample shards of one repetition; each shard is checked against its digest.
        reference: the file that the samples will be compared with; it must have the same features and protocol.
        network: weights of the feature network, if its kind has any.
        autoencoder: decodes samples that are latents.
        clip_network, captions: folder of a CLIPModel, and the prompts of the samples; both are needed with `clip`.
        clip: {"sha256": digest of the folder's files, or null for any; "prefix": text before each caption; "name";
            "variant": of the weights, if one is named; "resize": {"size", "filter"} of a first resizing, or null}.

    Raises:
        ValueError: a damaged input, a reference with other features or another protocol, a block that spans several
            repetitions, latents without an autoencoder, or only some of `clip`, `clip_network` and `captions`.
    """
    torch_setup.set_threads(threads)
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
    with record.writing(output):
        inputs = record.check_inputs(block=block, reference=reference)
        real = tensor_files.load_metadata(reference)
        extractor, identity = feature_files.load(network, features, modes=real["modes"])
        inputs |= record.check_inputs(network=network, autoencoder=autoencoder, captions=captions)
        target = torch_setup.choose_device(device)
        extractor.to(target)
        if real["features"] != identity or real["protocol"] != protocol:
            raise ValueError(
                f"{reference} holds {real['features']} with {real['protocol']}, but the spec has {identity} "
                f"with {protocol}"
            )
        samples = manifest.read(block)
        facts = {"features": identity, "protocol": protocol, **_origin(samples)}
        images = SampleImages(samples, batch_size=batch_size, autoencoder=autoencoder, device=target)
        scorer = None
        if clip and clip_network and captions:
            scorer, facts["clip"], inputs["clip"] = clip_files.caption_scorer(
                clip_network, captions, clip, device=target
            )
            first, size = clip.get("resize"), scorer.clip.size
            before = f" to {first['size']} pixels ({first['filter']}), then" if first else ""
            reporting.log(f"CLIP sees the samples as 8 bits, resized{before} to {size} pixels (bicubic)")
        tensors = _extract(images, extractor, protocol, scorer)
        with record.publish(output, stage="features", inputs=inputs) as temporary:
            tensor_files.write(temporary, tensors, {**record.provenance("features", spec, inputs), **facts})


def _extract(
    images: SampleImages, extractor: FeatureNetwork, protocol: dict[str, Any], scorer: CaptionScorer | None
) -> dict[str, Tensor]:
    """Tensors of the file."""
    values, predicted, labels, cosines = [], [], [], []
    status = reporting.Progress(total=len(images), unit="batches")
    for image, label in images:
        part, classes = extract(extractor, image, protocol["quantise"], protocol["resize"])
        values.append(part)
        predicted.append(classes)
        labels.append(label)
        cosines += [scorer(image, label)] if scorer else []
        status.add(images=len(image))
    features = torch.cat(values)
    moments = Moments.of(features)
    return {
        "features": features,
        "predicted": torch.cat(predicted),
        "label": torch.cat(labels),
        "count": torch.tensor(moments.count),
        "sum": moments.sum,
        "outer": moments.outer,
        **({"clip": torch.cat(cosines)} if scorer else {}),
    }


def _origin(samples: manifest.Manifest) -> dict[str, Any]:
    """The repetition of the block, and how its samples were drawn."""
    spec, rows = samples.metadata["spec"], samples.numbers("index")
    num_samples = spec["num_samples"]
    first, last = int(rows.min()), int(rows.max())
    repetition = first // num_samples
    if last // num_samples != repetition:
        raise ValueError(
            f"{samples.path} holds samples {first} to {last}, of more than one repetition of {num_samples}"
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
    job.main(run)
