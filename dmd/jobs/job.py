"""The job that runs a stage: its command line, its log and status file, its devices, and one line for an error."""

import argparse
import contextlib
import inspect
import json
import logging
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from dmd.config import printing
from dmd.config.section_base import Section
from dmd.jobs import command_line, garbage_collection, gpu_locks, job_status, processes, reporting, signals, slurm
from dmd.provenance import files, memory_limit, record

EXTRAS = {  # package of an extra in pyproject.toml -> the extra
    "peft": "text",
    "tokenizers": "text",
    "transformers": "text",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "torchao": "8bit",
    "tensorboard": "tensorboard",
}
# loggers of libraries that warn, when they are imported, of parts that this package does not use
QUIET = ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer")
OUTPUTS = ("output", "markdown", "fid", "grid")  # flags of the artifact that a stage locks
REFUSALS = ("can't allocate memory", "cannot allocate memory", "bad_alloc", "failed to map", "can't start new thread")
_log = logging.getLogger("dmd")


def main(run: Callable[..., None], *sections: type[Section]) -> None:
    """Turns the Path parameters of `run` into flags and reads all others from --spec (JSON).

    Keys that the spec lacks have the defaults of `sections`, see `command_line.arguments`.

    Exits with status 1 and a one-line message for errors that a user or a file can cause; the traceback goes to the
    log. Exits with `signals.EXIT_STATUS` after a signal. Of several processes, only the first to fail logs the error.
    """
    garbage_collection.switch_on()
    sys.excepthook = reporting.print_exception
    parser = argparse.ArgumentParser(description=inspect.getdoc(run), formatter_class=argparse.RawTextHelpFormatter)
    paths, spec_parameters = command_line.parameters(run)
    for name, parameter in paths.items():
        number = "*" if command_line.is_list(parameter.annotation) else None
        required = parameter.default is inspect.Parameter.empty
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=Path, nargs=number, required=required, default=parameter.default)
    parser.add_argument("--spec", type=json.loads, nargs="+", default=[{}], help="parameters, as JSON; several merge")
    parser.add_argument("--log", type=Path, help="also write the log to this file, and a status file beside it")
    parsed = vars(parser.parse_args())
    spec = {name: value for part in parsed.pop("spec") for name, value in part.items()}
    path, log = parsed.pop("log"), None
    _start_log()
    try:
        signals.listen(lambda stop: _stop(stop, log))
        _wait_for_another(parsed)
        log = path
        _log_to(log)
        with job_status.refreshed(log if processes.rank() == 0 else None):
            arguments = command_line.arguments(spec, spec_parameters, sections)
            try:
                _claim_devices(arguments)
                command = f"{sys.executable} -m {_module_name()} {shlex.join(sys.argv[1:])}"
                _log.info("%s", command, extra={"is_command": True})
                begin = time.monotonic()
                run(**parsed, **arguments)
                reporting.log(f"done in {time.monotonic() - begin:.1f} s")
            except record.MadeMeanwhile as made:
                reporting.log(str(made))
    except record.MadeMeanwhile as made:
        reporting.log(str(made))
    except signals.Stopped as stop:
        _stop(stop, log)
        sys.exit(signals.exit_status())
    except (ValueError, OSError) as error:
        _fail(error, log)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        extra = f"pip install '.[{EXTRAS[package]}]' -c envs/requirements.txt"
        _fail(ValueError(f"package {package} is not installed: in the folder of this project run {extra}"), log)
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # of torch, which a stage may not have imported
            advice = "Lower the batch size, or set compute.dtype bfloat16"
            _fail(ValueError(f"GPU memory does not suffice: {str(error).splitlines()[0]} {advice}"), log)
        if _lacks_memory(error):
            what = " ".join(f"{type(error).__name__} {error}".split())[:200]
            _fail(ValueError(f"memory does not suffice: {what}; on a cluster `resources` asks for more"), log)
        if isinstance(error, RuntimeError) and processes.count() > 1:  # often caused by another's failure
            _fail(error, log)
        _log.debug("%s", _encodable(traceback.format_exc()), extra={"is_traceback": True})
        _end(log, "failed", f"error: {type(error).__name__}: {error}")
        raise


def _lacks_memory(error: Exception) -> bool:
    """Whether memory was refused, by the error's type or message, or else by an address space that is nearly full."""
    message = str(error).lower()
    return isinstance(error, MemoryError) or any(words in message for words in REFUSALS) or memory_limit.tight()


def _stop(stop: signals.Stopped, log: Path | None) -> None:
    """Says that a signal stopped the job, has SLURM start it again if that asked for it, and removes what is
    half-written, which the stage itself could not where a library holds it.
    """
    files.remove_unfinished()
    if processes.first_to_fail():
        requeued = slurm.requeue(advanced=stop.advanced) if signals.received() == "SIGUSR1" else ""
        _end(log, "stopped", f"{stop}{requeued}")


def _fail(error: Exception, log: Path | None) -> None:
    if processes.first_to_fail():
        where = f" in process {processes.rank()} of {processes.count()}" if processes.count() > 1 else ""
        _log.debug("%s", _encodable(traceback.format_exc()), extra={"is_traceback": True})
        _end(log, "failed", f"error{where}: {error}")
    sys.exit(1)


def _end(log: Path | None, state: Literal["failed", "stopped"], message: str) -> None:
    """Writes into the log and the status file how the job ended."""
    _log.error("%s", _encodable(message))
    job_status.end(log, state, _encodable(message))


def _encodable(text: str) -> str:
    """The text with an escape for each byte of a name that is not UTF-8."""
    return text.encode(errors="backslashreplace").decode()


def _wait_for_another(paths: Mapping[str, Any]) -> None:
    """Waits for a job that is making the same artifact, before this one takes a GPU and writes the log of both.

    An error is left to the stage: it locks the artifact again, while errors go to the log.

    Raises:
        MadeMeanwhile: that job has made it, so there is nothing left to do.
    """
    output = next((paths[name] for name in OUTPUTS if paths.get(name)), None)
    if output is not None and not processes.launched():
        with contextlib.suppress(OSError), record.writing(output):
            pass


def _claim_devices(spec: dict[str, Any]) -> None:
    """Leases GPUs and starts processes, once per job and before CUDA is used; processes of torchrun inherit both."""
    if processes.launched():
        return
    processes.forget_inherited()
    num, nodes = processes.wanted(spec)
    if spec.get("device") == "auto":
        gpu_locks.lease_visible(num // nodes, log=_log.info)
    processes.launch(num, nodes, threads=spec.get("threads", 1))


def _module_name() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else sys.argv[0]


def _start_log() -> None:
    """Shows the log on the screen; of several processes, that of the first."""
    _log.setLevel(logging.DEBUG)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.raiseExceptions = False  # a full or read-only disk costs lines of the file, not tracebacks on the screen
    screen = logging.StreamHandler(sys.stderr)
    screen.setLevel(logging.INFO if processes.rank() == 0 else logging.ERROR)
    _add_handler(screen)


def _log_to(path: Path | None) -> None:
    """Writes the log to a file, too; of several processes, the first replaces an old one."""
    if path is None:
        return
    leads = processes.rank() == 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = "w" if leads else "a"
        _add_handler(logging.FileHandler(path, mode, "utf-8", delay=not leads, errors="backslashreplace"))
    except OSError as error:
        sys.exit(printing.line(f"error: cannot write the log {path}: {error}"))


def _add_handler(handler: logging.Handler) -> None:
    handler.setFormatter(reporting.LogFormatter())
    _log.addHandler(handler)
