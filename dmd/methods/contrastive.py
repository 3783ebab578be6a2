"""Training of a CLIP: each image is told from the others by its caption, and the reverse (arXiv 2103.00020, Fig. 3).

Radford et al. 2021 take the other images of a batch as negatives. A batch here may hold an image twice, so all rows of
the same image count as positives alike, as in Yang et al. 2022 (arXiv 2204.03610, Eqs. 3 to 5). The loss compares all
rows of a batch, so a batch is never split.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from dmd.config.methods import contrastive as sections
from dmd.methods.base import Clock, Method, Part, Rows, Step, StepLog
from dmd.models.image_text import ImageText


@dataclass
class Contrastive(Method[sections.Contrastive]):
    """Trains an `ImageText`; as in every method, the trained network is called student."""

    @classmethod
    def steps(cls, config: sections.Contrastive, clock: Clock) -> tuple[Step, ...]:
        """One step on one batch of images with captions."""
        return (Step("student", ("student",), (Part("images", config.batch_size, "images"),)),)

    def loss(self, step: Step, part: Part, rows: Rows, clock: Clock, log: StepLog) -> Tensor:
        """Mean of the cross-entropies of images among captions, and of captions among images."""
        network = self.networks["student"]
        assert isinstance(network, ImageText)
        images, texts, scale = network(rows["image"], rows["tokens"])
        loss, right = contrastive_loss(images, texts, scale, rows["row"])
        log.scalar("loss/contrastive", loss, len(images))
        log.scalar("accuracy", right, len(images))
        return loss


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of a batch, and the fraction of images whose nearest caption is one of their own.

    Args:
        images, texts: embeddings of length 1, (B, E).
        scale: factor on their cosines.
        row: int64 (B,), equal for equal images.
    """
    cosines = scale * images @ texts.T
    same = row[:, None] == row[None]
    target = same / same.sum(1, keepdim=True)  # symmetric
    loss = (functional.cross_entropy(cosines, target) + functional.cross_entropy(cosines.T, target)) / 2
    nearest = cosines.detach().argmax(1, keepdim=True)
    return loss, same.gather(1, nearest).float().mean()


METHOD = Contrastive
