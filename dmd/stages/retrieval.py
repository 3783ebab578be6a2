"""Stage retrieval: how often samples are found by their prompts, and real images by their captions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dmd.data import manifest
from dmd.data.dataset import SPLITS
from dmd.data.image_shards import ImageReader
from dmd.data.prompts import Prompts
from dmd.importers import clip_files
from dmd.jobs import job, reporting, torch_setup
from dmd.metrics.clip import Clip, metric_name
from dmd.metrics.features import eight_bit, quantise
from dmd.metrics.resizing import resize
from dmd.metrics.retrieval import TOP, found, ranks
from dmd.models import loading
from dmd.provenance import record
from dmd.report import score_files, scores
from dmd.sampling.drawn_images import SampleImages

BATCH_SIZE = 64  # images or texts at once
SIDE = 16  # pixels of the images whose distance is measured, after averaging


def run(
    *,
    samples: list[Path],
    captions: Path,
    clip_network: Path,
    images: Path | None = None,
    autoencoder: Path | None = None,
    output: Path,
    experiment: str,
    clip: dict[str, Any],
    device: str = "cpu",
    threads: int = 1,
) -> None:
    """Writes retrieval.json: the fractions of samples whose prompt is the nearest, or among the five nearest, prompts.

    Of all distinct prompts of the samples those of the same image are right. With `images` it also has these fractions
    for the images themselves (`real`) and for what the autoencoder makes of them (`autoencoder`), and says how near the
    samples are to training images or their mirror images (`nearest`): the fraction whose nearest one has their prompt,
    and the median of the root mean squared difference, of images averaged to 16 x 16 pixels; `held_out` is this median
    for held-out images. `ranks` has the rank of each sample, from 1, by its prompt.

    Args:
        samples: blocks of samples that make up whole repetitions.
        captions: captions/captions.parquet.
        clip_network: folder of a CLIPModel.
        images: images/manifest.parquet, where the prompts are its captions.
        autoencoder: decodes samples that are latents.
        experiment: name of the experiment, for the file.
        clip: as for stage features.

    Raises:
        ValueError: a damaged input, or latents without an autoencoder.
    """
    torch_setup.set_threads(threads)
    spec = {"experiment": experiment, "clip": clip, "device": device, "threads": threads}
    with record.writing(output):
        inputs = record.check_inputs(samples=samples, captions=captions, images=images, autoencoder=autoencoder)
        target = torch_setup.choose_device(device)
        scorer, identity, inputs["clip"] = clip_files.caption_scorer(clip_network, captions, clip, device=target)
        judge = _Judge(scorer.clip, scorer.prefix, scorer.resize, scorer.captions)
        real = None if images is None else RealImages(images, scorer.captions)
        judge = judge if real is None else judge.among(real.prompts)
        score, codec = _of_samples(samples, judge, real, autoencoder, target), None
        if autoencoder is not None:
            codec = loading.load_codec(autoencoder).to(target)
        if real is not None:
            score |= {"real": found(judge.ranks(real.training()))}
            score |= {} if codec is None else {"autoencoder": found(judge.ranks(_decoded(real.training(), codec)))}
        head = {**record.provenance("retrieval", spec, inputs), "experiment": experiment}
        head |= {"metric": f"retrieval-{metric_name(identity)}", "num_prompts": len(judge.texts)}
        head |= {"network": {name: identity[name] for name in ("name", "sha256")}, "prefix": clip["prefix"]}
        score_files.write(output, {**head, **score}, inputs)
        reporting.log(", ".join(f"{key} {score[key]['value']:.3f}" for key in ("top1", "top5")))


@dataclasses.dataclass
class _Judge:
    """The network, and all distinct prompts.

    Attributes:
        texts: embeddings of the prompts, (P, E).
        number: of each row of captions, its prompt's number, int64.
        same: bool (P, P), whether two prompts are of the same image.
    """

    clip: Clip
    prefix: str
    first_size: Any
    captions: Prompts

    def __post_init__(self) -> None:
        rows = self.captions.rows(range(len(self.captions)))
        self.prompts = [*dict.fromkeys(rows)]
        by_text = {text: number for number, text in enumerate(self.prompts)}
        self.number = torch.tensor([by_text[text] for text in rows])
        named = [self.prefix + text for text in self.prompts]
        parts = [named[start : start + BATCH_SIZE] for start in range(0, len(named), BATCH_SIZE)]
        self.texts = torch.cat([self.clip.texts(part) for part in parts])
        self.same = torch.eye(len(named), dtype=torch.bool)

    def among(self, of_images: Sequence[Sequence[str]]) -> _Judge:
        """This judge, for which the prompts of each image are the same."""
        by_text = {text: number for number, text in enumerate(self.prompts)}
        for texts in of_images:
            numbers = torch.tensor([by_text[text] for text in texts], dtype=torch.int64)
            self.same[numbers[:, None], numbers] = True
        return self

    def ranks(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """Ranks of images (B, 3, H, W) in [-1, 1], which come with the number of one prompt of each."""
        parts = []
        for image, prompt in batches:
            levels = eight_bit(quantise(image, 256))
            levels = levels if self.first_size is None else resize(levels, **self.first_size)
            parts.append(ranks(self.clip.images(levels) @ self.texts.T, self.same[prompt]))
        return torch.cat(parts)


class RealImages:
    """The images of a dataset.

    Attributes:
        prompts: of each training image, those of its captions that are among the prompts.
    """

    def __init__(self, path: Path, captions: Prompts) -> None:
        self._training = ImageReader(path, "training")
        self._held_out = ImageReader(path, "held_out") if SPLITS[1] in self._training.splits else None
        rows = captions.rows(range(len(captions)))
        self._number = {text: number for number, text in enumerate(dict.fromkeys(rows))}
        all_captions = self._training.captions(torch.arange(len(self._training)))
        self.prompts = [[text for split in each for text in split if text in self._number] for each in all_captions]
        image = self._training.batch(torch.arange(len(self._training)))
        self._small = torch.cat([_small(image), _small(image.flip(-1))])

    def training(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The training images that have prompts, in batches, each with the number of one of its prompts."""
        chosen = torch.tensor([row for row, texts in enumerate(self.prompts) if texts])
        for rows in chosen.split(BATCH_SIZE):
            yield (
                self._training.batch(rows),
                torch.tensor([self._number[self.prompts[row][0]] for row in rows.tolist()]),
            )

    def nearest(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The distance of each image to the nearest training image or its mirror image, and the row of that one."""
        distance, row = torch.cdist(_small(image.clamp(-1, 1)), self._small).min(1)
        return distance / self._small.shape[1] ** 0.5, row % len(self.prompts)

    def held_out_distance(self) -> float | None:
        """The median of this distance for held-out images; None if there are none."""
        if self._held_out is None:
            return None
        return float(self.nearest(self._held_out.batch(torch.arange(len(self._held_out))))[0].median())


def _small(image: Tensor) -> Tensor:
    """Images averaged to 16 x 16 pixels, as vectors."""
    return functional.adaptive_avg_pool2d(image, SIDE).flatten(1)


def _of_samples(
    paths: Sequence[Path], judge: _Judge, real: RealImages | None, autoencoder: Path | None, device: torch.device
) -> dict[str, Any]:
    """The scores of samples by repetition, and how near they are to training images."""
    by_repetition: dict[int, list[Tensor]] = {}
    by_prompt: dict[str, list[int]] = {}
    distances, own, facts = list[Tensor](), list[bool](), dict[str, Any]()
    status = reporting.Progress(total=len(paths), unit="blocks")
    for block in map(manifest.read, paths):
        num = block.metadata["spec"]["num_samples"]
        facts = {"num_samples": num, "network_calls": block.metadata["facts"]["network_calls"]}
        for image, label in SampleImages(block, batch_size=BATCH_SIZE, autoencoder=autoencoder, device=device):
            prompt = judge.number[label]
            rank = judge.ranks([(image, prompt)])
            by_repetition.setdefault(int(block.numbers("index")[0]) // num, []).append(rank)
            texts = [judge.prompts[number] for number in prompt.tolist()]
            for text, place in zip(texts, rank.tolist(), strict=True):
                by_prompt.setdefault(text, []).append(place)
            if real is not None:
                distance, rows = real.nearest(image)
                distances.append(distance)
                own += [text in real.prompts[row] for text, row in zip(texts, rows.tolist(), strict=True)]
        status.add(1)
    sets = [found(torch.cat(parts)) for _, parts in sorted(by_repetition.items())]
    score = {**facts, **{f"top{limit}": scores.spread([each[f"top{limit}"] for each in sets]) for limit in TOP}}
    if real is not None:
        median = float(torch.cat(distances).median())
        nearest = {"own": sum(own) / len(own), "distance": median, "held_out": real.held_out_distance()}
        score["nearest"] = nearest
    return score | {"ranks": by_prompt}


def _decoded(batches: Iterable[tuple[Tensor, Tensor]], codec: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """What the autoencoder makes of images."""
    device = next(codec.parameters()).device
    with torch.no_grad():
        for image, prompt in batches:
            yield codec.decode(codec.encode(image.to(device))).cpu(), prompt


if __name__ == "__main__":
    job.main(run)
