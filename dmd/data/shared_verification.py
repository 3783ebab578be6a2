"""Of the processes of a job one verifies each shard; the others wait for its result, or verify other shards."""

import time
from collections.abc import Callable
from datetime import timedelta

from torch import distributed

from dmd.data.shard_rows import Verifier, verify_alone
from dmd.jobs import processes

POLL_SECONDS = 0.05
_GOOD = "good"


def verify_once(group: str = "shard") -> Verifier:
    """What a reader gets as `verify`; `group` is another name for each manifest of a job."""
    if processes.count() == 1:
        return verify_alone
    # a client of its own: a wait in the thread that reads ahead must not hold up the main thread's collectives
    store, *_ = next(distributed.rendezvous("env://", timeout=timedelta(minutes=5)))
    return _SharedVerifier(store, group)


class _SharedVerifier:
    """Uses the store of torchrun: the first process that asks for a shard verifies it, and stores the result."""

    def __init__(
        self, store: distributed.Store, group: str = "shard", *, patience: float = processes.TIMEOUT.total_seconds()
    ) -> None:
        self._store, self._group, self._patience = store, group, patience

    def __call__(self, number: int, check: Callable[[], None]) -> None:
        """Raises the error of the process that verified the shard in all of them; ValueError if it does not end."""
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
                raise ValueError(f"shard {number}: the process that hashes it has not ended in {self._patience:g} s")
            time.sleep(POLL_SECONDS)
        if (result := self._store.get(key).decode()) != _GOOD:
            raise ValueError(result)
