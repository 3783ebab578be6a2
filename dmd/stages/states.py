"""Stage states: text states of prompts as shards, for text-to-image distillation without pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dmd.data import manifest, shard_publishing
from dmd.jobs import job, reporting, torch_setup
from dmd.provenance import record
from dmd.sampling.text_states import Texts


def run(
    *,
    prompts: Path,
    text_encoder: Path,
    output: Path,
    shard_size: int,
    first: int,
    last: int,
    device: str,
    threads: int,
) -> None:
    """Writes states/{shard}.tar for shards first .. last and the block file that lists them.

    An item has fields `text`, float16 (L, E), and `label`, its prompt's row: i modulo the number of prompts for item i.

    Args:
        prompts: prompts/prompts.parquet.
        text_encoder: teacher/text_encoder.safetensors.
        output: states/blocks/{first}-{last}.parquet; the shards go into the folder above it.
        shard_size: prompts in a shard.
        first, last: numbers of the shards, both included.
        device: "auto" or "cpu".
        threads: of torch.

    Raises:
        ValueError: a damaged input.
    """
    torch_setup.set_threads(threads)
    with record.writing(output):
        inputs = record.check_inputs(prompts=prompts, text_encoder=text_encoder)
        spec: dict[str, Any] = {"shard_size": shard_size, "first": first, "last": last}
        provenance = record.provenance("states", spec | {"device": device, "threads": threads}, inputs)
        texts = Texts(prompts, text_encoder, torch_setup.choose_device(device), num=(last + 1) * shard_size)
        status = reporting.Progress(total=(last - first + 1) * shard_size, unit="prompts")
        tables, tars, shape, num_truncated = [], {}, [0, 0], 0
        for number in range(first, last + 1):
            path = output.parent.parent / f"{number:05d}.tar"
            rows, states, truncated = texts.encode(range(number * shard_size, (number + 1) * shard_size))
            shape, num_truncated = [*states.shape[1:]], num_truncated + truncated
            halves = states.half().numpy()
            items = [
                (number * shard_size + index, {"text": halves[index], "label": np.asarray(row)})
                for index, row in enumerate(rows.tolist())
            ]
            tars[str(path)], table = shard_publishing.publish(
                path, items, name=f"../{path.name}", number=number, provenance=provenance, inputs=inputs
            )
            tables.append(table)
            status.add(shard_size)
        facts = {"text": {"length": shape[0], "width": shape[1]}, "num_truncated": num_truncated}
        with record.publish(output, stage="states", inputs={**inputs, "shards": tars}) as temporary:
            manifest.write(temporary, pa.concat_tables(tables), {**provenance, "facts": facts})


if __name__ == "__main__":
    job.main(run)
