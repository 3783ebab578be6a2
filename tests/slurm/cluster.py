"""SLURM on one machine: a controller and two nodes on loopback, without systemd, cgroups or a database.

`python tests/slurm/cluster.py` starts one and keeps it until Ctrl-C.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")
PACKAGES = ("slurm-wlm", "munge")
PLACE = Path("/etc/slurm")  # job steps look nowhere else
NODES = ("n1", "n2")
MARK = "# written by tests/slurm/cluster.py"
PATIENCE = 60.0  # seconds
CONFIGURATION = """{mark}
ClusterName=dmd-test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
EnforcePartLimits=ALL
ReturnToService=2
MinJobAge=3600
GresTypes=gpu
NodeName=n1 NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=12000 Gres=gpu:h100:2 Weight=2
NodeName=n2 NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=12000 Gres=gpu:a100:2 Weight=1
PartitionName=cpu Nodes=n1,n2 Default=YES State=UP
PartitionName=gpu Nodes=n1,n2 State=UP
"""
DEVICES = f"""{MARK}
AutoDetect=off
NodeName=n1 Name=gpu Type=h100 File=/dev/null,/dev/zero
NodeName=n2 Name=gpu Type=a100 File=/dev/null,/dev/zero
"""


@dataclass(frozen=True)
class Daemon:
    """A process that was started here: its number, and when it began, which no later process of that number shares."""

    pid: int
    began: str

    def lives(self) -> bool:
        """Whether it runs; a dead one that nobody has waited for does not."""
        return _status(self.pid) == ("alive", self.began)


def _status(pid: int) -> tuple[str, str]:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "gone", ""
    return "dead" if fields[0] in "ZX" else "alive", fields[19]


def install() -> None:
    """Debian's packages where a program is missing; exits with what to do where that cannot be done."""
    os.environ["PATH"] += os.pathsep + "/usr/sbin"
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        sys.exit(f"{', '.join(missing)} not found: install {' and '.join(PACKAGES)} (Debian's names), then try again")
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for line in (["update"], ["install", "--yes", "--no-install-recommends", *PACKAGES]):
        subprocess.run(["apt-get", "-qq", *line], check=True, env=quiet, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def running() -> Iterator[Path]:
    """A cluster of two nodes; yields the folder of its logs. Stops what it started, and nothing else.

    Exits where the machine has a SLURM configuration of its own, or this process may not write one.
    """
    for name in ("slurm.conf", "gres.conf"):
        if (PLACE / name).exists() and not (PLACE / name).read_text().startswith(MARK):
            sys.exit(f"{PLACE / name} exists: this machine belongs to a cluster, which is left alone")
        if (PLACE / name).exists() and _answers():
            sys.exit(f"{PLACE / name}: another run of this test has its cluster up; wait for it")
    if os.geteuid() != 0:
        sys.exit("the cluster's daemons and /etc/slurm need root")
    folder = Path(tempfile.mkdtemp(prefix="dmd-slurm-"))
    folder.chmod(0o755)
    daemons: list[Daemon] = []
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped by SIGTERM"))
    try:
        _configure(folder)
        for daemon in _start(folder):
            daemons.append(daemon)
        yield folder
    finally:
        _stop(daemons)
        for name in ("slurm.conf", "gres.conf"):
            (PLACE / name).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        signal.signal(signal.SIGTERM, before)


def _configure(folder: Path) -> None:
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    (folder / "munge.key").chmod(0o600)
    host = socket.gethostname().split(".")[0]
    text = CONFIGURATION.format(mark=MARK, host=host, folder=folder, ports=_free_ports(3))
    PLACE.mkdir(exist_ok=True)
    (PLACE / "slurm.conf").write_text(text)
    (PLACE / "gres.conf").write_text(DEVICES)


def _free_ports(num: int) -> list[int]:
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(num)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _start(folder: Path) -> Iterator[Daemon]:
    munge = ["--force", f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket"]
    munge += [f"--{kind}-file={folder}/munged.{kind}" for kind in ("pid", "log", "seed")]
    commands = {"munged": ["munged", *munge], "slurmctld": ["slurmctld"]}
    commands |= {f"slurmd-{node}": ["slurmd", "-N", node] for node in NODES}
    for name, line in commands.items():
        subprocess.run(line, check=True, stdout=subprocess.DEVNULL)  # it goes on as a daemon
        yield _daemon(folder / f"{name}.pid")
    deadline = time.monotonic() + PATIENCE
    while _states() != ["idle"] * len(NODES):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the nodes are {_states()}; {(folder / 'slurmctld.log').read_text()[-3000:]}")
        time.sleep(0.2)


def _daemon(path: Path) -> Daemon:
    deadline = time.monotonic() + PATIENCE
    while not (path.exists() and path.read_text().strip()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} never came: {path.with_suffix('.log').read_text()[-3000:]}")
        time.sleep(0.05)
    pid = int(path.read_text())
    return Daemon(pid, _status(pid)[1])


def _stop(daemons: list[Daemon]) -> None:
    """The nodes first, munged last: SIGTERM, and SIGKILL after a while."""
    for daemon in reversed(daemons):
        for number, patience in ((signal.SIGTERM, 20.0), (signal.SIGKILL, 5.0)):
            deadline = time.monotonic() + patience
            if daemon.lives():
                os.kill(daemon.pid, number)
            while daemon.lives() and time.monotonic() < deadline:
                time.sleep(0.05)


def _answers() -> bool:
    line = ["timeout", "5", "scontrol", "ping"]
    return "UP" in subprocess.run(line, capture_output=True, text=True).stdout


def _states() -> list[str]:
    line = ["sinfo", "--noheader", "--Node", "--partition=cpu", "--format=%t"]
    return subprocess.run(line, capture_output=True, text=True).stdout.split()


if __name__ == "__main__":
    install()
    with running() as logs, contextlib.suppress(KeyboardInterrupt):
        print(f"up; logs in {logs}. Ctrl-C stops it", flush=True)
        signal.pause()
