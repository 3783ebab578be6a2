"""Each shard is hashed by one process of a job: the others wait for what it found, and hash other shards meanwhile."""

import time
from collections.abc import Callable
from datetime import timedelta

from torch import distributed

from dmd.cluster import processes
from dmd.data.shard_rows import Once, unshared

POLL_SECONDS = 0.05
_GOOD = "good"


def once(group: str = "shard") -> Once:
    """What a reader of this process takes: alone it checks every shard itself. `group` tells manifests apart."""
    if processes.count() == 1:
        return unshared
    # a client of its own: a wait in the thread that reads ahead must not hold up the main thread's collectives
    store, *_ = next(distributed.rendezvous("env://", timeout=timedelta(minutes=5)))
    return _Shared(store, group)


class _Shared:
    """Through the store of torchrun: who asks first for a shard checks it, and says what came of it."""

    def __init__(
        self, store: distributed.Store, group: str = "shard", *, patience: float = processes.TIMEOUT.total_seconds()
    ) -> None:
        self._store, self._group, self._patience = store, group, patience

    def __call__(self, number: int, check: Callable[[], None]) -> None:
        """ValueError of the process that checked the shard, in all of them; or because it does not come to an end."""
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
        if (found := self._store.get(key).decode()) != _GOOD:
            raise ValueError(found)
