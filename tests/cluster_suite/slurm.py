"""A real Slurm on this machine: munged, slurmctld and two slurmd in a folder of their own, on ports of their own."""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import IO

from tests.processes import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")
PACKAGES = "slurmctld slurmd slurm-client munge"

CONF = """
ClusterName=tiny
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld}
SlurmdPort={ctld}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
SchedulerParameters=bf_interval=1,sched_interval=2
KillWait=10
InactiveLimit=0
NodeName=n1 NodeAddr=127.0.0.1 NodeHostname={host} Port={n1} CPUs=1 RealMemory=8000
NodeName=n2 NodeAddr=127.0.0.1 NodeHostname={host} Port={n2} CPUs=1 RealMemory=8000
PartitionName=debug Nodes=n1,n2 Default=YES MaxTime=60 State=UP
"""


def missing() -> list[str]:
    """Programs that are not installed (daemons lie in sbin, which is not on every PATH)."""
    return [name for name in PROGRAMS if _program(name) is None]


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _environ(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes()
    return b""


def _ours(conf: str) -> list[int]:
    """Processes of this test's Slurm."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if conf.encode() in _environ(pid)]


class Slurm:
    """Context: the cluster; `env` is what its clients need."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.daemons: list[subprocess.Popen] = []
        self.machines: dict[str, subprocess.Popen] = {}
        self.env = {"SLURM_CONF": str(folder / "slurm.conf")}

    def __enter__(self) -> "Slurm":
        folder = self.folder
        folder.chmod(0o755)  # munge's socket is for everybody
        (folder / "state").mkdir()
        key = folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(1024))
        ports = {name: free_port() for name in ("ctld", "n1", "n2")}
        conf = CONF.format(folder=folder, host=socket.gethostname(), user=getpass.getuser(), **ports)
        (folder / "slurm.conf").write_text(conf)
        files = {f"--{n}-file": folder / f"munge.{n}" for n in ("key", "pid", "log", "seed")}
        self._start("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *(f"{k}={v}" for k, v in files.items()))  # fmt: skip
        self._until((folder / "munge.socket").exists)
        self._start("slurmctld", "-D", "-f", self.env["SLURM_CONF"])
        for node in ("n1", "n2"):
            self.start_machine(node)
        self._until(lambda: self.ask("sinfo", "--noheader", "--format=%T %D").split() == ["idle", "2"])
        return self

    def __exit__(self, *_: object) -> None:
        for job in self.ask("squeue", "--noheader", "--format=%A").split():
            self.ask("scancel", "--signal=KILL", "--full", job)
            self.ask("scancel", job)
        end = time.monotonic() + 30
        while self.ask("squeue", "--noheader", "--format=%A").strip() and time.monotonic() < end:
            time.sleep(0.2)
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def start_machine(self, node: str) -> None:
        """Its daemon, which whatever it starts inherits a mark from."""
        self.machines[node] = self._start(
            "slurmd", "-D", "-N", node, "-f", self.env["SLURM_CONF"], SER_TEST_MACHINE=node
        )

    def kill_machine(self, node: str) -> None:
        """SIGKILL to a machine's daemon and to all that runs under it; Slurm is told, as its SlurmdTimeout would in minutes."""
        marks = (f"SER_TEST_MACHINE={node}\0".encode(), f"SLURMD_NODENAME={node}\0".encode())
        while found := [
            pid for pid in _ours(self.env["SLURM_CONF"]) if any(m in _environ(pid) for m in marks)
        ]:
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.machines[node].poll()
            time.sleep(0.02)
        self.daemons.remove(self.machines.pop(node))
        self.ask("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=killed")

    def ask(self, *command: str) -> str:
        """What one of Slurm's commands says; empty where it fails."""
        return subprocess.run(
            command, env=os.environ | self.env, capture_output=True, text=True, check=False, timeout=60
        ).stdout

    def _start(self, name: str, *arguments: str, **marks: str) -> subprocess.Popen:
        log: IO[bytes] = (self.folder / f"{name}-{len(self.daemons)}.out").open("wb")
        program = _program(name)
        assert program is not None
        daemon = subprocess.Popen(
            [program, *arguments],
            env=os.environ | self.env | marks,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        log.close()
        self.daemons.append(daemon)
        return daemon

    def _until(self, ready, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not ready():
            dead = [d.args for d in self.daemons if d.poll() is not None]
            logs = "\n".join(
                f"{p.name}: {p.read_text(errors='replace')[-800:]}"
                for p in [*self.folder.glob("*.out"), *self.folder.glob("*.log")]
            )
            assert not dead, f"{dead} ended\n{logs}"
            assert time.monotonic() < end, f"Slurm is not ready after {seconds} s\n{logs}"
            time.sleep(0.1)
