"""A process in which readers of files are watched: what they may not do, how long and how much memory they may take."""

import contextlib
import faulthandler
import os
import resource
import signal
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

SECONDS = 10.0  # of the CPU, of a case; a minute of the clock
MEMORY = 1 << 30  # bytes that a case may ask for beyond what the process has
FORBIDDEN = frozenset(
    "os.system os.exec os.fork os.forkpty os.posix_spawn os.spawn subprocess.Popen pty.spawn socket.connect "
    "socket.getaddrinfo ctypes.dlopen pickle.find_class os.kill os.putenv".split()
)
INSTALLED = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))


class Overstepped(BaseException):
    """A reader did what no reader may; no `except Exception` hides it."""


class Watch:
    """Audit of this process: from `armed` on, code that does not come from files of the installation is not run."""

    def __init__(self, scratch: Path) -> None:
        """scratch: the only folder in which files may be written."""
        self._armed, self._scratch = False, str(scratch)
        self.seen = ""
        sys.addaudithook(self._audit)
        signal.signal(signal.SIGPROF, self._alarm)

    @contextlib.contextmanager
    def armed(self) -> Iterator[None]:
        """One case. Overstepped if it takes too long or oversteps; a hang outside Python ends the process."""
        self.seen = ""
        faulthandler.dump_traceback_later(6 * SECONDS, exit=True, file=sys.__stderr__)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        self._armed = True
        try:
            yield
        finally:
            self._armed = False
            signal.setitimer(signal.ITIMER_PROF, 0)
            faulthandler.cancel_dump_traceback_later()
        if self.seen:
            raise Overstepped(self.seen)

    def _alarm(self, *_: Any) -> None:
        self.seen = f"took longer than {SECONDS:g} s"
        raise Overstepped(self.seen)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._armed:
            return
        if event in FORBIDDEN or (event == "exec" and self._foreign(arguments[0])) or self._writes(event, arguments):
            self.seen = f"{event} {arguments!r:.200}"
            raise Overstepped(self.seen)

    def _foreign(self, code: CodeType) -> bool:
        name = code.co_filename
        return not (name.startswith((*INSTALLED, "<frozen ", "<attrs ", "<__array")) or "/dmd/" in name)

    def _writes(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "open" and isinstance(arguments[1], str):
            return bool(set(arguments[1]) & set("wax+")) and not self._inside(arguments[0])
        if event not in ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "shutil.rmtree"):
            return False
        place, folder = arguments[0], arguments[-1]  # a path relative to an open folder, if that is given
        relative = isinstance(folder, int) and folder >= 0
        return not self._inside(os.path.join(os.readlink(f"/proc/self/fd/{folder}"), place) if relative else place)

    def _inside(self, path: Any) -> bool:
        return isinstance(path, int) or str(path).startswith(self._scratch)


def limit_memory() -> None:
    """Lets this process grow by no more than `MEMORY`; the next claim beyond fails."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
