"""State of one `ser run`: its recipe, what is shown, Ray once it is needed, and the lines of the closing table."""

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.here import Here
from launch.display import Display
from launch.profile import SECRET
from ser.recipe import Recipe
from shards.errors import UserError
from shards.mirror import Mirror
from shards.store import Store


@dataclass
class Line:
    """One row of the closing table."""

    stage: str
    made: int
    kept: int
    seconds: float
    note: str = ""


@dataclass
class Runner:
    """State of one `ser run`: the recipe, what is shown, and Ray once it is needed.

    `alone` does everything in this process, one thing after the other, without Ray. `but` names models that are left out.
    """

    recipe: Recipe
    display: Display
    alone: bool = False
    but: frozenset[str] = frozenset()
    lines: list[Line] = field(default_factory=list)
    stack: ExitStack = field(default_factory=ExitStack)
    mirror: Mirror | None = None  # of a run in an object store
    _session: Any = None

    def session(self) -> Any:
        """The Ray session, started on first use; what stands in its place where nothing else takes part."""
        if self.alone:
            return Here()
        if self._session is None:
            self.display.say(
                "starting Ray"
                if self.recipe.cluster.address is None
                else f"joining Ray at {self.recipe.cluster.address}"
            )
            self._session = self.stack.enter_context(session_of(self.recipe, self.display.say))
            if self.recipe.is_remote:
                refuse_strangers(self.recipe)
            self.display.say(self._session.describe())
        return self._session

    def workers(self) -> int:
        """Trainings that run at once: what the cluster's declared resources allow."""
        have, want = self.session().resources(), self.recipe.cluster
        self.session().room(want.cpus_per_task, want.gpus_per_task).wait()
        by_cpu = have["CPU"] / max(want.cpus_per_task, 1e-9)
        by_gpu = have["GPU"] / want.gpus_per_task if want.gpus_per_task else by_cpu
        return max(1, int(min(by_cpu, by_gpu)))

    def record(self, stage: str, made: int, kept: int, began: float, note: str = "") -> None:
        """Add a line to the closing table; what it tells of is in the object store by then, if the run is."""
        if self.mirror is not None and made:
            self.mirror.push()
        self.lines.append(Line(stage, made, kept, time.perf_counter() - began, note))


def session_of(recipe: Recipe, say: Callable[[str], None]) -> Any:
    """The Ray session that a recipe declares, to be entered; `say` is told what is waited for."""
    from cluster.session import Session

    want, data = recipe.cluster, Store(recipe.data.path)
    shared = [path for path in (recipe.directory,) if path.is_dir()]
    shared += [Path(data.path(""))] if data.is_local else []
    # Workers see the folder that this process works in, whatever their own environment says.
    env = {"SER_SCRATCH": str(recipe.directory.parent)} if recipe.is_remote else {}
    if want.address is not None:  # others' machines: where hub models lie, and whether the hub may be asked
        env |= {k: v for k, v in os.environ.items() if k.startswith("HF_") and not SECRET.search(k)}
    options = {"token_file": want.token_file, "shared": shared, "wait": want.wait, "env": env}
    return Session(want.address, want.cpus, say=say, **options)


def refuse_strangers(recipe: Recipe) -> None:
    """Refuse a cluster whose other machines cannot see the folder that a run in an object store is worked on in.

    Raises:
        UserError: There are other machines, and nobody said that the folder is shared.
    """
    import ray

    hosts = {node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    if hosts - {os.uname().nodename} and not os.environ.get("SER_SCRATCH"):
        raise UserError(
            f"this cluster has {len(hosts)} machines, and the run's working folder is on one of them",
            where=f"{recipe.run_dir}: {recipe.directory}",
            hint="export SER_SCRATCH=FOLDER, one that all of them share; or use one machine",
        )
