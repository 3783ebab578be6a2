"""Shares the verification of shards: one process of a job verifies a shard, the others wait or verify other shards."""

import time
from collections.abc import Callable
from datetime import timedelta

from torch import distributed

from dmd.data.shard_rows import Verifier, verify_alone
from dmd.jobs import processes

POLL_SECONDS = 0.05
_GOOD = "good"


def verify_once(group: str = "shard") -> Verifier:
    """The `verify` argument of a reader; `group` must be different for each manifest of a job."""
    if processes.count() == 1:
        return verify_alone
    # a separate client: if the thread that reads ahead waits, it must not block the main thread's collectives
    store, *_ = next(distributed.rendezvous("env://", timeout=timedelta(minutes=5)))
    return _SharedVerifier(store, group)


class _SharedVerifier:
    """Uses the store of torchrun: the first process that asks for a shard verifies it, and stores the result."""

    def __init__(
        self, store: distributed.Store, group: str = "shard", *, patience: float = processes.TIMEOUT.total_seconds()
    ) -> None:
        self._store, self._group, self._patience = store, group, patience

    def __call__(self, number: int, check: Callable[[], None]) -> None:
        """Verifies a shard or waits for its result; all processes raise its error; ValueError after a timeout."""
        key = f"dmd/{self._group}/{number}"
        if self._store.add(f"{key}/claims", 1) == 1:
            try:
                check()
            except (ValueError, OSError) as error:
                self._store.set(key, str(error))
                raise
            self._store.set(key, _GOOD)
            return
        deadline = time.monotonic() + self._patience
        while not self._store.check([key]):
            if time.monotonic() > deadline:
                raise ValueError(f"shard {number}: the process that verifies it has not ended in {self._patience:g} s")
            time.sleep(POLL_SECONDS)
        if (result := self._store.get(key).decode()) != _GOOD:
            raise ValueError(result)
