"""A Ray session: embedded on this machine by default, or a running cluster by address.

Guarantees: only what was started here is shut down; the embedded cluster has its own token (a private file of mode 0600), its own
temporary folder, no dashboard and no usage reports, so that several sessions and users share a machine, and it listens on
loopback alone; of a joined cluster it takes `cpus` CPUs at most, the rest is other jobs'; a cluster that cannot be joined is
refused within seconds, in words; a handler of SIGTERM that stood before Ray started stands after it; `map` keeps a
bounded number of tasks in flight, cancels them when the caller stops or anything fails, and raises a task's UserError as
if the function had been called here. Work with GPUs is done by workers that live as long as the map, so that a model is
loaded once a worker.
A task sees the GPUs that it was given and, given none, no GPU; it runs in the folder that the driver was in, so relative paths
mean the same everywhere, on a machine that shares the driver's folders, or is refused.
Gives up: one session a process at a time (Ray's own limit). A cancelled task stops at its next Python instruction, so one
long native call is waited for by whoever needs its CPU.
"""

import logging
import math
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from cluster import own
from cluster.crew import HELD, LOOK, Caller, Crew, pull
from cluster.place import Home, marked, own_address, refuse_unreachable, require_ray
from cluster.room import Room
from shards.errors import UserError

# Seconds in which a worker of a killed driver, or one that was given up, ends and lets go of its training; one whose machine
# was cut off ends when its raylet has missed the head for long enough.
PATIENCE = 300.0
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}
# Else a task that was given no GPU sees them all and piles onto the first. Read by the workers, joined clusters' too.
_NO_STRAY_GPU = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}


class Session:
    """Context manager around `ray.init`.

    Args:
        address: Of a running cluster ("auto", "ray://...", "host:port"); None starts an embedded one.
        cpus: CPUs of the embedded cluster, default all of the machine; of a joined one, those used at once.
        gpus: GPUs of the embedded cluster; default all that Ray finds.
        namespace: Ray namespace of named actors.
        env: Environment variables of the workers, beside OMP_NUM_THREADS=1.
        token_file: File with the token of the cluster at `address`; default what Ray's own variables say.
        shared: Local folders that every machine of the cluster at `address` must see.
        wait: Seconds for which machines are waited for where the cluster cannot hold what is asked.
        say: Told what is waited for.

    Attributes:
        node: Address of the machine that gave the result which `map` yielded last.

    Raises:
        UserError: The cluster at `address` cannot be joined (nobody there, another token, other versions), or Ray is not
            installed.
    """

    def __init__(
        self,
        address: str | None = None,
        cpus: int | None = None,
        namespace: str = "ser",
        env: Mapping[str, str] | None = None,
        gpus: int | None = None,
        *,
        token_file: str | None = None,
        shared: Sequence[Path] = (),
        wait: float = 0.0,
        say: Callable[[str], None] = lambda text: None,
    ):
        self.address, self.cpus, self.gpus, self.namespace = address, cpus, gpus, namespace
        self.token_file, self.shared, self.wait, self.say = token_file, shared, wait, say
        self.node, self.home, self._stack = "", Home("."), ExitStack()
        self.env = {"OMP_NUM_THREADS": "1", **_NO_STRAY_GPU} | dict(env or {})
        self._started = False
        self._folder: Path | None = None
        self._lock: IO[str] | None = None
        self._saved: dict[str, str | None] = {}

    def __enter__(self) -> "Session":
        require_ray()
        if self.address is None:
            self._folder, self._lock = own.folder()
            token = self._folder / "token"
            own.write_token(token)
            self._set(_QUIET | {"RAY_TMPDIR": str(self._folder)} | own.token_variables(token))
        else:
            self._set(own.token_variables(Path(self.token_file) if self.token_file is not None else None))
        import ray

        own.forget_token()
        if ray.is_initialized():
            self._close()
            raise UserError(
                "a Ray session is open in this process already",
                hint="use that one, or close it before the next",
            )
        options: dict[str, Any] = {}
        if self.address is None:
            options = {"num_cpus": self.cpus, "num_gpus": self.gpus, "include_dashboard": False}
        try:
            if self.address is not None:
                own.refuse_missing_token()
                refuse_unreachable(self.address)
            handler = signal.getsignal(signal.SIGTERM)
            with own.on_loopback() if self.address is None else nullcontext():
                ray.init(
                    address=self.address or "local",
                    namespace=self.namespace,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    configure_logging=False,
                    runtime_env={"env_vars": self.env},
                    **options,
                )
            self._started = True
            # Ray has put its own there: it ends a driver without asking its trainings to save.
            if callable(handler) and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)
            folders = self.shared if self.address is not None else ()
            self.home = self._stack.enter_context(marked(folders))
        except (ConnectionError, RuntimeError, ValueError) as error:
            self._close()
            if self.address is None:
                raise
            raise _refusal(self.address, str(error)) from error
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        self._stack.close()
        if self._started:
            import ray

            ray.shutdown()
            self._started = False
        for name, value in self._saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._saved = {}
        own.forget_token()
        if self._folder:
            own.remove(self._folder)
            self._folder = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _set(self, variables: Mapping[str, str]) -> None:
        for name, value in variables.items():
            self._saved[name] = os.environ.get(name)
            os.environ[name] = value

    def map(
        self,
        function: Callable[[Any], Any],
        items: Iterable[Any],
        num_cpus: float = 1,
        max_in_flight: int | None = None,
        max_retries: int = 3,
        num_gpus: float = 0,
    ) -> Iterator[tuple[int, Any]]:
        """Yields (index of the item, function(item)) as tasks finish, in any order.

        Args:
            function: Picklable; tasks are repeated when their worker dies, so it must be idempotent.
            items: Small picklable things (URLs and numbers, no audio); drawn as there is room.
            num_cpus: CPUs a task takes.
            max_in_flight: Tasks handed to Ray at a time; default twice the CPUs that the cluster has by then.
            max_retries: Repeats of a task whose worker or node died; -1 without end.
            num_gpus: GPUs a task takes; it sees these alone. Then the tasks are done by as many long-lived workers as the
                cluster holds, all asked for at once: Ray ends a process after one task with GPUs, and what it had loaded.

        Raises:
            Stopped: No machine has them any more.
            UserError: No machine of the cluster has the CPUs or GPUs of one task, nor comes within `wait` seconds. Else as
                the function raised it. Any other exception of a task comes as its own type, too.
        """
        import ray
        from ray.exceptions import RayTaskError

        room = self.room(num_cpus, num_gpus)
        room.wait()
        home = replace(self.home, folder=os.getcwd())

        def limit() -> int:
            return max_in_flight or self._in_flight(room, num_cpus)

        if num_gpus > 0:
            worker = ray.remote(Caller).options(num_cpus=num_cpus, num_gpus=num_gpus)
            held = math.inf if self.address is None else HELD
            crew = Crew(lambda: worker.remote(function, home), held=held)
            results = pull(crew, items, room, limit, max_retries)
            with closing(results):
                for index, (result, self.node) in results:
                    yield index, result
            return

        def call(item: Any) -> Any:  # ray.remote refuses partials and instances as they are
            home.enter()
            return function(item), own_address()

        task = ray.remote(num_cpus=num_cpus, max_retries=max_retries)(call)
        queue = enumerate(items)
        running: dict[Any, int] = {}
        came = False
        try:
            while True:
                most = limit()  # machines come and go
                while len(running) < most and (item := next(queue, None)) is not None:
                    running[task.remote(item[1])] = item[0]
                if not running:
                    return
                done, _ = ray.wait(list(running), num_returns=1, timeout=LOOK)
                came |= bool(done)
                room.begun(came)
                if not done:
                    room.enough()  # else what was lost with its machine would wait for ever
                    continue
                try:
                    result, self.node = ray.get(done[0])
                except RayTaskError as error:
                    raise (error.cause if isinstance(error.cause, UserError) else error) from None
                yield running.pop(done[0]), result
        finally:
            # Cancelling a task in the moment in which it finishes aborts the whole process (a failed check in Ray 2.60's
            # task manager, seen); those that are about to finish get a moment, so that only long ones are cancelled.
            if running:
                _, late = ray.wait(list(running), num_returns=len(running), timeout=1.0)
                for reference in late:
                    # By force: an interrupt is lost on a task that waits in compiled code, and work is idempotent.
                    ray.cancel(reference, force=True)

    def room(
        self, num_cpus: float, num_gpus: float, count: int = 1, least: int | None = None, **more: Any
    ) -> Room:
        """Whether `count` such tasks (or `least` of them, where that is enough) find room at once, which may come for `wait`
        seconds; `more` as `Room` has it.

        Raises:
            UserError: They would take more than `cpus`.
        """
        if self.address is not None and self.cpus is not None and count * num_cpus > self.cpus:
            raise UserError(
                f"{count} x {num_cpus:g} CPUs are asked for at once, and this run may use {self.cpus}",
                where="cluster.cpus",
                hint=f"raise cluster.cpus, or lower {more.get('keys', 'cluster.cpus_per_task or train.workers')}",
            )
        patience = self.wait if self.address is not None else 0.0
        return Room(num_cpus, num_gpus, least or count, patience=patience, say=self.say, **more)

    def resources(self) -> dict[str, float]:
        """CPUs and GPUs that this session may use at once, of those that the cluster has now."""
        import ray

        found = ray.cluster_resources()
        have = {name: found.get(name, 0.0) for name in ("CPU", "GPU")}
        if self.address is not None and self.cpus is not None:
            have["CPU"] = min(have["CPU"], self.cpus)
        return have

    def _in_flight(self, room: Room, num_cpus: float) -> int:
        """Tasks handed to Ray at a time: enough that no CPU that is there now waits, and never more than `cpus` of a joined cluster."""
        fit = min(room.now(), int(self.resources()["CPU"] / (num_cpus or 1)))
        return max(1, fit) if self.address is not None and self.cpus is not None else max(2, 2 * fit)

    def describe(self) -> str:
        """Which cluster this is, what it has and what of it is used, in a line."""
        import ray

        found = ray.cluster_resources()
        machines = sum(1 for node in ray.nodes() if node["Alive"])
        have = f"{found.get('CPU', 0):g} CPUs, {found.get('GPU', 0):g} GPUs"
        if self.address is None:
            return f"Ray on this machine: {have}"
        address = ray.get_runtime_context().gcs_address
        used = "all of them" if self.cpus is None else f"at most {self.resources()['CPU']:g} CPUs at once"
        return (
            f"Ray at {address}: {machines} machine{'s' * (machines != 1)} with {have}; this run uses {used}"
        )


def _refusal(address: str, said: str) -> UserError:
    """Why a cluster was not joined, in Ray's own words where there are no better ones."""
    where = f"cluster.address={address}"
    if "Version mismatch" in said:
        found = [
            line.split()[-1] for line in said.splitlines() if line.strip().startswith(("Ray:", "Python:"))
        ]
        theirs, ours = (f"Ray {a} on Python {b}" for a, b in (found[:2], found[2:4]))
        return UserError(
            f"the cluster runs {theirs}, this environment {ours}",
            where=where,
            hint="both must be the same: use the environment that the cluster was started with",
        )
    return UserError(
        f"cannot join the Ray cluster: {said.splitlines()[0]}",
        where=where,
        hint="check that it runs (ray status) and that RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH are those of its head",
    )
