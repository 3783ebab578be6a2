"""Stage sheet: the first samples of an experiment, each with its prompt or class."""

from __future__ import annotations

from pathlib import Path

from dmd.data import manifest
from dmd.data.prompts import Prompts
from dmd.jobs import job, torch_setup
from dmd.provenance import record
from dmd.report import contact_sheet, plots
from dmd.sampling.drawn_images import SampleImages

NUM_IMAGES = 24


def run(
    *,
    block: Path,
    output: Path,
    prompts: Path | None = None,
    autoencoder: Path | None = None,
    device: str = "cpu",
    threads: int = 1,
) -> None:
    """Writes pictures/samples.png.

    Args:
        block: table of the first block of samples, the same ones that are scored.
        prompts: captions of the samples, if their condition is text.
        autoencoder: decodes samples that are latents.

    Raises:
        ValueError: a damaged input, latents without an autoencoder, or points instead of images.
    """
    torch_setup.set_threads(threads)
    with record.writing(output):
        inputs = record.check_inputs(block=block, prompts=prompts, autoencoder=autoencoder)
        samples = manifest.read(block)
        facts = samples.metadata["facts"]
        if facts["shape"][1:] == [1, 1]:
            raise ValueError(f"{block} holds points in the plane: see pictures/grid.png of a distilled experiment")
        target = torch_setup.choose_device(device)
        batches = SampleImages(samples, batch_size=NUM_IMAGES, autoencoder=autoencoder, device=target)
        images, labels = next(iter(batches))
        rows = labels.tolist()
        texts = Prompts(prompts).rows(rows) if prompts else [f"class {row}" if row >= 0 else "" for row in rows]
        calls = facts["network_calls"]
        title = f"The first {len(images)} samples, {calls} network call{'s' if calls > 1 else ''} each"
        figure = contact_sheet.contact_sheet([images], texts, title)
        with record.publish(output, stage="sheet", inputs=inputs) as temporary:
            plots.save(figure, temporary)


if __name__ == "__main__":
    job.main(run)
