"""What every task of a Slurm job runs: one of Ray's machines with the command on the first, or one rank of a training.

    srun ... python -m launch.slurm_task ray   HOME OUTCOME COMMAND...
    srun ... python -m launch.slurm_task ranks HOME OUTCOME RECIPE MODEL FOLD SEED

The tasks find each other by a file in the submission's folder, which every machine has: no host name must resolve, no port
is fixed. The first task writes it, and removes it when the command has ended; then the others end. One whose Ray cannot start
writes why beside it, and the first, if it still waits for the others, ends the job with these words.

Guarantees: SIGTERM, SIGUSR1 and the batch script's file `.stop` make the command save and stop; its exit code is the job
step's. A file, because srun's signals reach every process of a step at some sites, Ray's own among them.
Gives up: after the first machine is lost the job ends; Slurm's --requeue starts it again, and it goes on.
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from launch.supervise import CANCEL, supervise
from ser.stopping import EXIT_CODE
from shards import atomic
from shards.errors import UserError

PATIENCE = 600.0  # seconds in which all tasks of a job are expected to have begun
PAUSE = 0.5


def main(arguments: list[str]) -> int:
    """Entry point of every task."""
    kind, home, outcome, *rest = arguments
    rank, tasks = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda n, _: asked.append(n))
    meeting = Path(home) / f"meeting-{os.environ['SLURM_JOB_ID']}-{os.environ.get('SLURM_RESTART_COUNT', 0)}"
    try:
        if kind == "ray":
            if rank == 0:
                return _head(meeting, Path(outcome), rest, tasks, asked)
            return _worker(meeting, _failure(meeting, rank), asked)
        return _rank(meeting, Path(outcome), rest, rank, tasks)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2


def _head(meeting: Path, outcome: Path, command: list[str], nodes: int, asked: list[int]) -> int:
    from cluster.node import Node

    cpus, gpus = _given()
    with Node(meeting.with_suffix(".token"), cpus=cpus, gpus=gpus) as node:
        node.wait_for(1, PATIENCE)
        atomic.write(meeting, json.dumps({"head": node.address}))
        try:
            node.wait_for(nodes, PATIENCE, partial(_refuse_failed, meeting, nodes))
            if asked:
                return EXIT_CODE
            print(f"Ray on {nodes} machines, head {node.address}", flush=True)
            env = {**os.environ, "RAY_ADDRESS": node.address}
            return supervise(command, outcome, env, stops=_stops(meeting))
        finally:
            meeting.unlink(missing_ok=True)
            for rank in range(1, nodes):
                _failure(meeting, rank).unlink(missing_ok=True)


def _failure(meeting: Path, rank: int) -> Path:
    """Where a task writes why Ray does not run on its machine."""
    return meeting.with_suffix(f".failed-{rank}")


def _refuse_failed(meeting: Path, nodes: int) -> None:
    """Raises a UserError with the words of a machine on which Ray does not run."""
    for rank in range(1, nodes):
        with contextlib.suppress(FileNotFoundError):
            said = json.loads(_failure(meeting, rank).read_text())
            raise UserError(
                f"Ray did not start on a machine of this job: {said['words']}",
                where=said["host"],
                hint="every machine needs the environment of the first: the same Python, Ray and folders",
            )


def _worker(meeting: Path, failure: Path, asked: list[int]) -> int:
    found = _await(meeting, asked)
    if found is None:
        return EXIT_CODE

    def tell(words: str) -> None:
        atomic.write(failure, json.dumps({"host": os.uname().nodename, "words": words}))

    try:
        return _member(meeting, found["head"], tell)
    except Exception as error:
        tell(str(error))
        raise


def _member(meeting: Path, head: str, tell: Callable[[str], None]) -> int:
    """Be one of the head's machines until the command has ended; `tell` is told why Ray ended here before."""
    from cluster.node import Node

    cpus, gpus = _given()
    with Node(meeting.with_suffix(".token"), head, cpus, gpus) as node:
        while meeting.exists():  # a signal is the head's business: it saves, then ends
            if not node.alive():
                tell(node.last_words())
                print(f"Ray ended on {os.uname().nodename}: {node.last_words()}", file=sys.stderr, flush=True)
                break  # the others go on without this machine
            time.sleep(PAUSE)
        while meeting.exists():  # srun ends all tasks some time after the first that ends
            time.sleep(PAUSE)
    return 0


def _rank(meeting: Path, outcome: Path, training: list[str], rank: int, ranks: int) -> int:
    from cluster.node import free_port, socket_address

    if rank == 0:
        found = {"host": socket_address(), "port": free_port()}
        atomic.write(meeting, json.dumps(found))
    else:
        found = _await(meeting, [])
        assert found is not None
    env = os.environ | {
        "RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": os.environ["SLURM_LOCALID"],
        "MASTER_ADDR": found["host"], "MASTER_PORT": str(found["port"]),
    }  # fmt: skip
    try:
        return supervise(
            [sys.executable, "-m", "ser", *training],
            outcome.with_name(f"{outcome.stem}-rank{rank}.json"),
            env,
            stops=_stops(meeting),
        )
    finally:
        if rank == 0:
            meeting.unlink(missing_ok=True)


def _await(meeting: Path, asked: list[int]) -> dict[str, Any] | None:
    """What the first task wrote; None when the job is asked to stop before."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if asked:
            return None
        try:
            return json.loads(meeting.read_text())
        except FileNotFoundError:
            time.sleep(PAUSE)
    raise UserError(
        f"the first task said nothing in {PATIENCE:.0f} s",
        where=f"{os.uname().nodename}: {meeting}",
        hint="is the run directory on a file system that every machine of the job has?",
    )


def _stops(meeting: Path) -> list[Path]:
    """Files by which the batch script and `ser cancel` ask the job to save and stop."""
    return [meeting.with_suffix(".stop"), meeting.with_name(CANCEL)]


def _given() -> tuple[int | None, int | None]:
    """CPUs and GPUs that Slurm gave this task here."""
    cpus = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ.get("SLURM_CPUS_ON_NODE")
    gpus = os.environ.get("SLURM_GPUS_ON_NODE")
    return int(cpus) if cpus else None, int(gpus) if gpus and gpus.isdigit() else None


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
