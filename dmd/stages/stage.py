"""What every stage shares: the command line, the log, progress, device and threads."""

import argparse
import inspect
import json
import logging
import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch

from dmd.artifacts import address_space
from dmd.config.section import Section
from dmd.diffusion.compute import Compute, set_tf32
from dmd.stages import command_line, heartbeat, imports_are_done, leases, processes, slurm, stops

Item = TypeVar("Item")
STATUS_SECONDS = 10.0
REFUSALS = ("can't allocate memory", "cannot allocate memory", "bad_alloc", "failed to map", "can't start new thread")
_log = logging.getLogger("dmd")


def main(run: Callable[..., None], *sections: type[Section]) -> None:
    """Turns the Path parameters of `run` into flags and reads all others from --spec (JSON).

    What the spec leaves out has the defaults of `sections`, see `command_line.arguments`.

    Exits 1 with one line for whatever a user or a file can cause, `stops.EXIT_STATUS` after a signal; the traceback
    goes to the log. Of several processes the first that fails says why.
    """
    imports_are_done()
    parser = argparse.ArgumentParser(description=inspect.getdoc(run), formatter_class=argparse.RawTextHelpFormatter)
    paths, numbers = command_line.parameters(run)
    for name, parameter in paths.items():
        number = "*" if command_line.is_list(parameter.annotation) else None
        required = parameter.default is inspect.Parameter.empty
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=Path, nargs=number, required=required, default=parameter.default)
    parser.add_argument("--spec", type=json.loads, nargs="+", default=[{}], help="numbers, as JSON; several add up")
    parser.add_argument("--log", type=Path, help="also write the log to this file")
    parsed = vars(parser.parse_args())
    spec = {name: value for part in parsed.pop("spec") for name, value in part.items()}
    log = parsed.pop("log")
    _start_log(log)
    try:
        stops.listen()
        given = command_line.arguments(spec, numbers, sections)
        _claim_devices(given)
        _log.info("%s -m %s %s", sys.executable, _module_name(), shlex.join(sys.argv[1:]))
        with heartbeat.beating(log if processes.rank() == 0 else None):
            run(**parsed, **given)
    except stops.Stopped as stop:
        if processes.first_to_fail():
            _log.error("%s%s", stop, slurm.requeue(advanced=stop.advanced) if stops.asked() == "SIGUSR1" else "")
        sys.exit(stops.status())
    except (ValueError, OSError) as error:
        _fail(error)
    except torch.OutOfMemoryError as error:
        what = str(error).splitlines()[0]
        _fail(ValueError(f"GPU memory does not suffice: {what} Lower the batch size, or set compute.dtype bfloat16"))
    except Exception as error:
        if _lacks_memory(error):
            what = " ".join(f"{type(error).__name__} {error}".split())[:200]
            _fail(ValueError(f"memory does not suffice: {what}; on a cluster `resources` asks for more"))
        if isinstance(error, RuntimeError) and processes.count() > 1:  # often but the echo of another's failure
            _fail(error)
        _log.debug("%s", traceback.format_exc())
        _log.error("error: %s: %s", type(error).__name__, error)
        raise


def _lacks_memory(error: Exception) -> bool:
    """Whether Python, torch, a thread or a library that is only loaded now was refused memory, even if none says so."""
    told = str(error).lower()
    return isinstance(error, MemoryError) or any(words in told for words in REFUSALS) or address_space.tight()


def _fail(error: Exception) -> None:
    if processes.first_to_fail():
        where = f" in process {processes.rank()} of {processes.count()}" if processes.count() > 1 else ""
        _log.debug("%s", traceback.format_exc())
        _log.error("error%s: %s", where, error)
    sys.exit(1)


def _claim_devices(spec: dict[str, Any]) -> None:
    """GPUs and processes, before CUDA is used and once for a job: what torchrun starts has inherited both."""
    if "RANK" in os.environ:
        return
    num, nodes = processes.wanted(spec)
    if spec.get("device") == "auto":
        leases.lease_visible(num // nodes, log=_log.info)
    processes.launch(num, nodes, threads=spec.get("threads", 1))


def _module_name() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else sys.argv[0]


def _start_log(path: Path | None) -> None:
    _log.setLevel(logging.DEBUG)
    logging.raiseExceptions = False  # where a disk is full or read-only the screen still has each line, and only that
    leads = processes.rank() == 0
    screen = logging.StreamHandler(sys.stderr)
    screen.setLevel(logging.INFO if leads else logging.ERROR)
    handlers: list[logging.Handler] = [screen]
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handlers.append(logging.FileHandler(path, mode="w" if leads else "a", delay=not leads))
        except OSError as error:
            sys.exit(f"error: cannot write the log {path}: {error}")
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
        _log.addHandler(handler)


def log(message: str) -> None:
    """A line on stderr and in the log file, of the first process alone."""
    if processes.rank() == 0:
        _log.info("%s", message)


class Progress:
    """A status line every ten seconds and at the end: rate and time left."""

    def __init__(self, *, total: int, unit: str, done: int = 0) -> None:
        """total: how many there are in all; done: how many were made before."""
        self._total, self._unit, self._before, self._count = total, unit, done, done
        self._images = 0
        self._begin = self._last = time.monotonic()

    def add(self, num: int = 1, *, images: int = 0) -> None:
        """Counts `num` more, which took `images` images where these are not what is counted."""
        stops.check()
        self._count += num
        self._images += images
        if (now := time.monotonic()) - self._last < STATUS_SECONDS and self._count < self._total:
            return
        self._last = now
        seconds = max(now - self._begin, 1e-9)
        rate = (self._count - self._before) / seconds
        left = (self._total - self._count) / rate
        pace = f", {self._images / seconds:.4g} images/s" if self._images else ""
        log(f"{self._count}/{self._total} {self._unit}, {rate:.3g} {self._unit}/s{pace}, {left:.0f} s left")


def progress(items: Iterable[Item], *, total: int, unit: str, done: int = 0) -> Iterator[Item]:
    """Yields `items` and counts each in a `Progress`."""
    status = Progress(total=total, unit=unit, done=done)
    for item in items:
        yield item
        status.add()


def set_threads(num: int) -> None:
    """Threads of torch: from the spec, never from what a scheduler granted, since their number changes bytes.

    Also asks for deterministic algorithms, for CPUs (see `choose_device`), and turns TF32 off until a spec wants it.
    """
    torch.set_num_threads(num)
    set_tf32(Compute())
    torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms would import the compiler, 1 s
    # filling memory that nothing reads costs 6 % of a pass
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def choose_device(name: str) -> torch.device:
    """ "cpu", or "auto": a GPU where there is one, the first or that of this process.

    A GPU works without deterministic algorithms: they are slow there, and would not make all kernels repeatable.
    """
    if name not in ("auto", "cpu"):
        raise ValueError(f"device must be 'auto' or 'cpu', got {name!r}")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if processes.count() > 1 and processes.local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(processes.local_rank())
    torch.set_deterministic_debug_mode("default")
    return torch.device("cuda", torch.cuda.current_device())
