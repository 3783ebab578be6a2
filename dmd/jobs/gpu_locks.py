"""Which GPUs a job may use: jobs of one machine lease cards, no two the same; a lease ends with its process."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

STATUS_SECONDS = 10.0
POLL_SECONDS = 0.5


def lease_visible(num: int, *, log: Callable[[str], None]) -> None:
    """Leases `num` GPUs, and shows no others to this process and to those that it starts: CUDA_VISIBLE_DEVICES.

    Does nothing where there is no choice: fewer than two cards, or a scheduler that has assigned them. To be called
    before CUDA is used. Waits while too few are free, and holds none meanwhile, so that two that wait never block each
    other.

    Raises:
        ValueError: the machine shows fewer cards than `num`, but more than one.
    """
    cards = shared_cards(os.environ, torch.cuda.device_count)
    if len(cards) < 2:
        return
    if num > len(cards):
        raise ValueError(f"{num} GPUs wanted, but there are {len(cards)}: {', '.join(cards)}")
    leased = lease(cards, num, folder=Path(tempfile.gettempdir()), log=log)
    if "CUDA_VISIBLE_DEVICES" not in os.environ:  # cards are numbers: of the same order in every job
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(leased)


def shared_cards(environment: Mapping[str, str], count: Callable[[], int]) -> list[str]:
    """Names of the cards to lease from: those that the user has made visible, else all; none below a scheduler."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(index) for index in range(count())]
    return [] if "SLURM_JOB_ID" in environment else [name.strip() for name in visible.split(",") if name.strip()]


def lease(cards: Sequence[str], num: int, *, folder: Path, log: Callable[[str], None]) -> list[str]:
    """Names of `num` of the cards, each held by a lock in `folder` until this process ends, even by a kill.

    A program that this process becomes (exec) keeps them. Programs that it starts do not hold them.
    """
    begin = logged = time.monotonic()
    while True:
        with open(_open_lock_file(folder / "dmd-gpus.lock"), "rb") as turn:  # one at a time looks for free cards
            fcntl.flock(turn, fcntl.LOCK_EX)
            held: dict[str, int] = {}
            for card in cards:
                if len(held) < num and (lock := _try_lock(folder / f"dmd-gpu-{card}.lock")) is not None:
                    held[card] = lock
            if len(held) == num:
                for lock in held.values():
                    os.set_inheritable(lock, True)
                return list(held)
            for lock in held.values():
                os.close(lock)
        if time.monotonic() - logged >= STATUS_SECONDS:
            logged = time.monotonic()
            log(f"waiting for {num} of the GPUs {', '.join(cards)} for {logged - begin:.0f} s: other jobs lease them")
        time.sleep(POLL_SECONDS)


def _try_lock(path: Path) -> int | None:
    """Takes a lock; its descriptor, None where another process holds it."""
    lock = _open_lock_file(path)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _open_lock_file(path: Path) -> int:
    """Descriptor of a lock file that all users of the machine share: they may read and lock it, not write."""
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o444)
        os.fchmod(descriptor, stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
        return descriptor
