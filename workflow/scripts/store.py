"""Copies existing pairs to the configured storage: python workflow/scripts/store.py EXPERIMENT

For pairs made before `storage` was configured; makes no new ones. With `keep: false` it removes the shards from
results/. Files that the storage already has are not uploaded again; different files of the same name are not replaced.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "workflow" / "python"))
sys.path.append(str(ROOT))  # last, since a file named torch.py may lie there

from dmd.config import Experiments, load, printing  # noqa: E402
from dmd.data import manifest  # noqa: E402
from dmd.data.storage import Storage  # noqa: E402
from dmd.provenance import record  # noqa: E402


def main() -> None:
    """Command line: see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", help="an experiment of config.yaml")
    parsed = parser.parse_args()
    try:
        config = load()
        if config.storage is None:
            raise ValueError("storage is null: set storage.prefix in config.yaml")
        storage = Storage(config.storage.settings(), log=lambda line: print(printing.line(line), file=sys.stderr))
        experiments = Experiments(config)
        for block in experiments.blocks(parsed.experiment, "pairs"):
            store(storage, Path("results", experiments.path(parsed.experiment, "pairs", block)))
        table = Path("results", experiments.path(parsed.experiment, "pairs_manifest"))
        if table.is_file():
            store(storage, table)
    except (ValueError, OSError) as error:
        sys.exit(printing.lines(f"error: {error}"))


def store(storage: Storage, path: Path) -> None:
    """Copies a block file or manifest and its local shards; without `storage.keep`, then removes these shards."""
    if not path.is_file():
        raise ValueError(f"{path} is missing: run snakemake for it, which also stores it")
    with record.exclusive(path):
        here = [file.path for file in manifest.read(path).shards if file.path.is_file()]
        for each in [*here, path]:
            record.check(each)
            there = storage.record(each)
            if there is not None and there["sha256"] != (record.read(each) or {}).get("sha256"):
                raise ValueError(f"{storage.url(each)} is another file, sha256 {there['sha256']}: it is not replaced")
            storage.upload(each)
        if not storage.keep:
            for each in here:
                storage.remove_local(each)
    print(printing.line(f"{path}: {len(here)} shards copied to {storage.prefix}"))


if __name__ == "__main__":
    main()
