"""Long-lived Ray workers of one size that pull work: what is slow to begin with is done once a worker, not once a unit.

All that are wanted are asked for at once, and one gets work when it is there; until then others do it, so unequal units and
unequal machines finish together. On a shared cluster a worker goes after a while between two units, so that the other jobs
there get their turn, and one on a machine that is given up gets nothing new.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from typing import Any

from cluster.place import Home, own_address
from cluster.room import Room, leaving
from shards.errors import UserError

MOST_LOST = 30  # workers in a row that die before they are there
HELD = 300.0  # seconds for which a worker of a shared cluster is kept over several units
LOOK = 5.0  # seconds without a result after which it is asked whether there can be one


class Crew:
    """At most `most` workers at once.

    Args:
        create: Asks Ray for a worker: an actor whose `where` answers the id of its machine and whose `run` does the work.
        most: Workers at once.
        held: Seconds after which a worker is given back after its work, so that who shares the cluster gets a turn.
    """

    def __init__(self, create: Callable[[], Any], most: int = 1, held: float = math.inf):
        self.create, self.most, self.held = create, most, held
        self.coming: dict[Any, Any] = {}  # what answers when it is there -> worker
        self.running: dict[Any, tuple[Any, Any]] = {}  # what answers when it is done -> worker, its work
        self.since: dict[Any, float] = {}
        self.nodes: dict[Any, str] = {}
        self.told: set[Any] = set()
        self.lost = 0  # in a row, before they were there

    def hire(self, needed: int) -> None:
        """Ask for workers until `needed` of them are there or coming; let those go that nothing is left for."""
        while len(self.coming) + len(self.running) < min(self.most, needed):
            worker = self.create()
            self.coming[worker.where.remote()] = worker
        while self.coming and len(self.coming) + len(self.running) > needed:
            self.end(self.coming.popitem()[1])

    def give(self, worker: Any, work: Any, *arguments: Any) -> None:
        """Start some work on a worker that is there: `run(*arguments)`."""
        self.since.setdefault(worker, time.monotonic())
        self.running[worker.run.remote(*arguments)] = worker, work

    def keeps(self, worker: Any) -> bool:
        """Whether a worker that has nothing to do may do some work."""
        now = time.monotonic()
        return worker not in self.told and now - self.since.get(worker, now) < self.held

    def ask(self, node: str | None = None) -> bool:
        """Ask those that work, on one machine or on all, to save and stop; whether there were any not asked before."""
        found = {
            worker for worker, _ in self.running.values() if node in (None, self.nodes[worker])
        } - self.told
        for worker in found:
            worker.stop.remote()
        self.told |= found
        return bool(found)

    def end(self, worker: Any) -> None:
        """Give back a worker and what it has of the cluster."""
        import ray

        self.since.pop(worker, None)
        self.nodes.pop(worker, None)
        self.told.discard(worker)
        ray.kill(worker)

    def came(self, reference: Any) -> Any:
        """The worker that is there now; None where it died on the way.

        Raises:
            UserError: That happened too often.
        """
        import ray
        from ray.exceptions import RayActorError

        worker = self.coming.pop(reference)
        try:
            self.nodes[worker] = ray.get(reference)
        except RayActorError as error:
            self.lost += 1
            if self.lost >= MOST_LOST:
                raise UserError(
                    f"workers died {self.lost} times before they began: {str(error).splitlines()[0]}",
                    hint="is this package installed on every machine of the cluster?",
                ) from None
            return None
        self.lost = 0
        return worker

    def close(self) -> None:
        """End them all."""
        for worker in [*self.coming.values(), *(worker for worker, _ in self.running.values())]:
            self.end(worker)


class Caller:
    """A worker that calls one function with item after item."""

    def __init__(self, function: Callable[[Any], Any], home: Home) -> None:
        self.function, self.home = function, home

    def where(self) -> str:
        """Id of the machine that it is on."""
        import ray

        return ray.get_runtime_context().get_node_id()

    def run(self, item: Any) -> tuple[Any, str]:
        """(function(item), address of this machine)."""
        self.home.enter()
        return self.function(item), own_address()


def pull(
    crew: Crew, items: Iterable[Any], room: Room, limit: Callable[[], int], max_retries: int
) -> Generator[tuple[int, Any], None, None]:
    """Yields (index of the item, what a worker of the crew made of it) as they are done.

    Args:
        crew: Its `most` follows the room that there is; all its workers end with this.
        items: Drawn as there are workers for them.
        room: Of one worker.
        limit: Workers that this session may have at once.
        max_retries: Repeats of an item whose worker died; -1 without end.

    Raises:
        UserError: Of an item, as it was raised; or its worker died too often.
        Stopped, UserError: As `Room.enough`.
    """
    import ray
    from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

    queue, waiting, deaths = enumerate(items), list[tuple[int, Any]](), Counter[int]()
    shared = crew.held < math.inf
    try:
        while True:
            crew.most = max(1, min(limit(), room.now()))
            while len(waiting) + len(crew.running) < crew.most and (item := next(queue, None)) is not None:
                waiting.append(item)
            if not waiting and not crew.running:
                return
            crew.hire(len(waiting) + len(crew.running))
            done, _ = ray.wait([*crew.coming, *crew.running], num_returns=1, timeout=LOOK)
            room.begun(bool(crew.running or done))
            if not crew.running and not done:
                room.enough()  # else what was lost with its machine would wait for ever
            gone = leaving() if shared else frozenset()
            for reference in done:
                result = None
                if reference in crew.coming:
                    worker = crew.came(reference)
                else:
                    worker, (index, item) = crew.running.pop(reference)
                    try:
                        result = index, ray.get(reference)
                    except RayTaskError as error:
                        crew.end(worker)
                        raise (error.cause if isinstance(error.cause, UserError) else error) from None
                    except (RayActorError, OutOfMemoryError) as error:
                        crew.end(worker)
                        deaths[index] += 1
                        if deaths[index] > max_retries >= 0:
                            raise UserError(
                                f"the worker of a unit died {deaths[index]} times: {str(error).splitlines()[0]}",
                                hint="look for out-of-memory kills (dmesg), or ask for more CPUs or GPUs a task",
                            ) from None
                        waiting.insert(0, (index, item))
                        continue
                if worker is not None:
                    stays = crew.keeps(worker) and crew.nodes[worker] not in gone
                    following = (waiting.pop(0) if waiting else next(queue, None)) if stays else None
                    if following is not None:
                        crew.give(worker, following, following[1])
                    else:
                        crew.end(worker)  # others may want what it has
                if result is not None:
                    yield result
    finally:
        crew.close()
