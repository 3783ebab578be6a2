"""One of several processes that read the same pairs, run as a program: MANIFEST; environment as of torchrun.

Prints the shards that it hashed, and the labels that it read.
"""

import json
import sys
import time
from pathlib import Path

import torch
from torch import distributed

from dmd.data import manifest as manifests
from dmd.data import shards, shared_verification
from dmd.data.pairs import PairReader
from dmd.jobs import processes
from dmd.provenance import files


def main() -> None:
    hashed: list[str] = []

    def sha256(path: Path) -> str:
        hashed.append(path.name)
        time.sleep(0.05)  # long enough for the other to ask for the same shard
        return files.sha256(path)

    shards.files = type("Counted", (), {**vars(files), "sha256": staticmethod(sha256)})  # type: ignore[attr-defined]
    manifest = manifests.read(Path(sys.argv[1]))
    with processes.group(2, torch.device("cpu")):
        reader = PairReader(manifest, seed=0, verify=shared_verification.verify_once())
        try:
            labels = reader.batch(processes.rank() * len(reader), len(reader))[
                1
            ]  # an epoch each, in orders of their own
        except ValueError as error:
            sys.exit(str(error))
        distributed.all_reduce(labels)
    print(json.dumps({"hashed": hashed, "labels": labels.tolist()}))


if __name__ == "__main__":
    main()
