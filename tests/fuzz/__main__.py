"""Feeds damaged files to every reader: python -m tests.fuzz --cases 3000 --seed 0

A reader may read what is still readable, or raise ValueError with a message that names the file. It never runs code,
writes, connects, takes longer than ten seconds or a gigabyte. Each case follows from (seed, reader, number); the file
of a case that failed is kept and named. Prints a table; --report FILE writes the counts as JSON. Exit status 1: a
failure.
"""

import argparse
import contextlib
import io
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from tests.fuzz.guard import Overstepped, Watch, limit_memory
from tests.fuzz.hostile import PLACES, hostile, remove
from tests.fuzz.mutations import JSON, mutated, mutated_json
from tests.fuzz.readers import READERS, Reader

NO_FILES = frozenset(name for name, *_ in PLACES)
SHOWN = 10  # failures of a reader


def main() -> None:
    """Command line: see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000, help="of each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", choices=READERS, help="only this one")
    parser.add_argument("--number", type=int, help="only this case")
    parser.add_argument("--report", type=Path)
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable()
    warnings.simplefilter("ignore")
    scratch = Path(tempfile.mkdtemp(prefix="dmd-fuzz-"))
    tempfile.tempdir = str(scratch)  # so that readers may have temporary files
    os.chdir(scratch)
    names = [parsed.reader] if parsed.reader else list(READERS)
    wholes = {name: _whole(scratch / name.replace(" ", "-"), READERS[name]) for name in names}
    watch = Watch(scratch)
    limit_memory()
    found = {}
    print(f"seed {parsed.seed}, {parsed.cases} cases of each reader\n{'reader':18}  read refused failed  seconds")
    for name in names:
        numbers = range(parsed.cases) if parsed.number is None else [parsed.number]
        began = time.process_time()
        found[name] = dict(read=0, refused=0, failed=0) | _cases(name, *wholes[name], parsed.seed, numbers, watch)
        if parsed.number is None:
            found[name] |= _hostile_cases(name, *wholes[name], watch)
        counts = found[name]
        seconds = time.process_time() - began
        print(f"{name:18} {counts['read']:5} {counts['refused']:7} {counts['failed']:6} {seconds:8.1f}", flush=True)
    if parsed.report is not None:
        facts = {"seed": parsed.seed, "cases": parsed.cases, "readers": found, "modules": sorted(MODULES)}
        parsed.report.write_text(json.dumps(facts) + "\n")
    failed = sum(counts["failed"] + counts.get("hostile failed", 0) for counts in found.values())
    if not failed:
        os.chdir("/")
        shutil.rmtree(scratch)
    sys.exit(1 if failed else 0)


Kept = dict[Path, bytes]
PACKAGE = str(Path(__file__).resolve().parents[2] / "dmd") + "/"
MODULES: set[str] = set()  # of the package, in which whole files were read


def _whole(folder: Path, reader: Reader) -> tuple[Path, Kept]:
    """A whole file, and what lies beside it. Its reader has read it once: what it imports late is now imported."""
    folder.mkdir()
    path = reader.make(folder)
    kept = {each: each.read_bytes() for each in folder.rglob("*") if each.is_file() and each != path}
    with contextlib.suppress(ValueError) if reader.refused else contextlib.nullcontext():
        sys.setprofile(_note_module)
        try:
            reader.read(path)
        finally:
            sys.setprofile(None)
    return path, kept


def _note_module(frame: FrameType, event: str, argument: Any) -> None:
    """Adds the module of this package that a frame runs code of to `MODULES`."""
    if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
        MODULES.add(frame.f_code.co_filename.removeprefix(PACKAGE))


def _cases(name: str, path: Path, kept: Kept, seed: int, numbers: Any, watch: Watch) -> Counter[str]:
    """How many cases of a reader were read, refused with a message, or failed; failures are printed."""
    reader, content, counts = READERS[name], path.read_bytes(), Counter[str]()
    for number in numbers:
        _restore(path.parent, kept)
        path.write_bytes(_damaged(content, reader, random.Random(zlib.crc32(f"{seed} {name} {number}".encode()))))
        fault = _fault(reader, path, watch, counts)
        if not fault and Path("executed").exists():
            fault = "the file was run"
        if fault:
            counts["failed"] += 1
            if counts["failed"] <= SHOWN:
                example = path.parent.parent / f"{number}-{path.name}"
                shutil.copyfile(path, example)
                print(f"  {name}, case {number}: {fault} ({example})", flush=True)
    return counts


def _hostile_cases(name: str, path: Path, kept: Kept, watch: Watch) -> Counter[str]:
    """How many of the files of `hostile` were read or refused as they should, or failed; failures are printed."""
    reader, content, counts = READERS[name], path.read_bytes(), Counter[str]()
    for each in hostile(content):
        if each.name in NO_FILES and not reader.outside:
            continue
        _restore(path.parent, kept)
        remove(path)
        each.put(path)
        messages: list[str] = []
        fault = _fault(reader, path, watch, counts, messages)
        if not fault and reader.outside and each.said and not any(word in str(messages) for word in each.said):
            fault = f"none of {each.said} was said: {messages}"
        if not fault and Path("executed").exists():
            fault = "the file was run"
        counts["hostile failed" if fault else "hostile"] += 1
        if fault:
            print(f"  {name}, {each.name}: {fault}", flush=True)
    remove(path)
    path.write_bytes(content)
    return Counter({key: counts[key] for key in ("hostile", "hostile failed")})


def _restore(folder: Path, kept: Kept) -> None:
    """Removes what the last case left, and writes `kept` again."""
    for each in folder.rglob("*"):
        if each.is_file() and each not in kept:
            each.unlink()
    for each, content in kept.items():
        each.write_bytes(content)


def _damaged(content: bytes, reader: Reader, chosen: random.Random) -> bytes:
    """Another content than `content`."""
    while True:
        valued = reader.tokens is JSON and chosen.random() < 0.5
        found = _valued(content, chosen) if valued else mutated(content, chosen, reader.tokens)
        if found != content:
            return found


def _valued(content: bytes, chosen: random.Random) -> bytes:
    """`content` with another value in its JSON; a safetensors file stays one, whose header has another length."""
    if content[8:9] != b"{":
        return mutated_json(content, chosen)
    length = int.from_bytes(content[:8], "little")
    header = mutated_json(content[8 : 8 + length].rstrip().replace(b'\\"', b"\0"), chosen)  # JSON within JSON
    header = header.replace(b"\0", b'\\"')
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def _fault(reader: Reader, path: Path, watch: Watch, counts: Counter[str], messages: list[str] | None = None) -> str:
    """What a reader did wrong, nothing where it did well; counts what it did."""
    try:
        with contextlib.redirect_stderr(io.StringIO()), watch.armed():
            reader.read(path)
        counts["read"] += 1
    except ValueError as error:
        if messages is not None:
            messages.append(str(error))
        if "\n" in str(error) and not _is_of_config(error):
            return f"ValueError of several lines: {error!r:.300}"
        if str(path.parent) not in str(error) and path.name not in str(error):
            if not _is_of_config(error):
                return f"ValueError without the file's name: {error!r:.300}"
        counts["refused"] += 1
    except Overstepped as error:
        return f"overstepped: {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {error!s:.300}"
    return ""


def _is_of_config(error: ValueError) -> bool:
    """Messages of a configuration name the key instead: there is one file of it."""
    return type(error).__name__ == "ConfigError"


if __name__ == "__main__":
    main()
