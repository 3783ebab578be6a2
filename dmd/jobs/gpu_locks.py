"""Leases of GPUs: each job of a machine gets cards that no other job has, until its process ends."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

STATUS_SECONDS = 10.0
POLL_SECONDS = 0.5


def lease_visible(num: int, *, log: Callable[[str], None]) -> None:
    """Leases `num` GPUs and sets CUDA_VISIBLE_DEVICES to them, for this process and those that it starts.

    To be called before CUDA is used. Does nothing if there are fewer than two cards, or if SLURM has assigned them.
    While too few cards are free it waits without holding any, so that two waiting jobs never block each other.

    Raises:
        ValueError: `num` is more than the cards of the machine, which has at least two.
    """
    import torch  # here, since what only takes locks need not wait for it

    cards = shared_cards(os.environ, torch.cuda.device_count)
    if len(cards) < 2:
        return
    if num > len(cards):
        raise ValueError(f"{num} GPUs wanted, but there are {len(cards)}: {', '.join(cards)}")
    leased = lease(cards, num, folder=Path(tempfile.gettempdir()), log=log)
    if "CUDA_VISIBLE_DEVICES" not in os.environ:  # cards are indices, which must mean the same in every job
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(leased)


def shared_cards(environment: Mapping[str, str], count: Callable[[], int]) -> list[str]:
    """Names of the cards to lease from: the visible ones, else all; none if SLURM has set the visible ones."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(index) for index in range(count())]
    return [] if "SLURM_JOB_ID" in environment else [name.strip() for name in visible.split(",") if name.strip()]


def lease(cards: Sequence[str], num: int, *, folder: Path, log: Callable[[str], None]) -> list[str]:
    """Locks `num` of the cards by files in `folder` and returns their names.

    The locks end with this process, also if it is killed. They survive an exec, but child processes do not hold them.
    """
    begin = logged = time.monotonic()
    while True:
        with open(_open_lock_file(folder / "dmd-gpus.lock"), "rb") as turn:  # one job at a time looks for free cards
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
    """Takes a lock and returns its descriptor, or None if another process holds it."""
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
