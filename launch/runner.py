"""State of one `ser run`: its recipe, what is shown, Ray once it is needed, and the lines of the closing table."""

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from cluster.here import Here
from launch.display import Display
from ser.recipe import Recipe


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
    _session: Any = None

    def session(self) -> Any:
        """The Ray session, started on first use; what stands in its place where nothing else takes part."""
        if self.alone:
            return Here()
        if self._session is None:
            from cluster.session import Session

            self.display.say(
                "starting Ray"
                if self.recipe.cluster.address is None
                else f"joining Ray at {self.recipe.cluster.address}"
            )
            self._session = self.stack.enter_context(
                Session(self.recipe.cluster.address, self.recipe.cluster.cpus)
            )
        return self._session

    def workers(self) -> int:
        """Trainings that run at once: what the cluster's declared resources allow."""
        self.session()
        import ray

        have, want = ray.cluster_resources(), self.recipe.cluster
        by_cpu = have.get("CPU", 1) / max(want.cpus_per_task, 1e-9)
        by_gpu = have.get("GPU", 0) / want.gpus_per_task if want.gpus_per_task else by_cpu
        return max(1, int(min(by_cpu, by_gpu)))

    def record(self, stage: str, made: int, kept: int, began: float, note: str = "") -> None:
        """Add a line to the closing table."""
        self.lines.append(Line(stage, made, kept, time.perf_counter() - began, note))
