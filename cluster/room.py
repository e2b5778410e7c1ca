"""Whether a cluster can hold what is asked of it, now or soon; machines that it is told to give up count no more."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from ser.stopping import Stopped
from shards.errors import UserError

BUSY = 30.0  # seconds without anything begun after which it is said that others have the room


class Room:
    """Whether the machines that are there can hold so many tasks of a size at once, and since when they cannot.

    Args:
        num_cpus: CPUs of one.
        num_gpus: GPUs of one.
        count: How many must run at once.
        memory: Bytes of one.
        patience: Seconds in which machines may still come.
        say: Told that they are waited for.
        keys: Of the recipe, where it asks for that much.
    """

    def __init__(
        self,
        num_cpus: float,
        num_gpus: float,
        count: int = 1,
        *,
        memory: float = 0.0,
        patience: float = 0.0,
        say: Callable[[str], None] = lambda text: None,
        keys: str = "cluster.cpus_per_task, cluster.gpus_per_task",
    ):
        asked = {"CPU": num_cpus, "GPU": num_gpus, "memory": memory}
        self.one = {name: amount for name, amount in asked.items() if amount > 0}
        self.count, self.patience, self.say, self.keys = count, patience, say, keys
        self.since: float | None = None
        self.had = False  # room, at some time
        self.idle: float | None = None  # since when nothing of it has begun

    def now(self) -> int:
        """How many they can hold."""
        if not self.one:
            return 1_000_000
        return sum(int(min(n.get(k, 0) / v + 1e-9 for k, v in self.one.items())) for n in _living())

    def enough(self) -> bool:
        """Whether they can hold what is asked; to be called again and again while that is waited for.

        Raises:
            UserError: They could not for `patience` seconds; names what is asked and what is there.
            Stopped: Likewise, but they could before: machines were lost, which is nobody's mistake.
        """
        if self.now() >= self.count:
            self.since, self.had = None, True
            return True
        size = _told(self.one)
        asked = f"a task asks for {size}" if self.count == 1 else f"{self.count} workers ask for {size} each"
        if self.since is None:
            self.since = time.monotonic()
            if self.patience > 0:
                self.say(f"{asked}; waiting up to {self.patience:.0f} s for machines (cluster.wait)")
        if time.monotonic() - self.since < self.patience:
            return False
        add = sum if self.count > 1 else max
        have = {
            name: add([node.get(name, 0) for node in _living()] or [0]) for name in ("CPU", "GPU", *self.one)
        }
        lacking = f"{asked}; this cluster has {_told(have)}"
        if self.had:
            raise Stopped(f"{lacking}, now that machines were lost; run the same command to go on")
        raise UserError(
            lacking,
            where=self.keys + (", train.workers" if self.count > 1 else ""),
            hint="ask for less, raise cluster.cpus, or join a cluster that has them (cluster.address; cluster.wait where it grows)",
        )

    def begun(self, yes: bool) -> None:
        """To be told again and again whether anything of what is asked for has begun; says once that others may hold it."""
        if yes:
            self.idle = None
        elif self.idle is None:
            self.idle = time.monotonic()
        elif time.monotonic() - self.idle > BUSY:
            import ray

            have, free = (
                _told({name: found.get(name, 0) for name in ("CPU", "GPU", *self.one)})
                for found in (ray.cluster_resources(), ray.available_resources())
            )
            self.say(
                f"nothing has come of it in {BUSY:.0f} s: a task asks for {_told(self.one)}; of {have}, {free} are free; "
                "other work may hold the rest, and is waited for"
            )
            self.idle = math.inf

    def wait(self) -> None:
        """Return once they can; a cluster that grows is told what is wanted.

        Raises:
            UserError, Stopped: As `enough`.
        """
        if self.enough():
            return
        from ray.autoscaler.sdk import request_resources

        request_resources(bundles=[self.one] * self.count)
        try:
            while not self.enough():
                time.sleep(0.5)
        finally:
            request_resources(bundles=[])


def leaving() -> frozenset[str]:
    """Ids of the machines that the cluster is told to give up: `ray drain-node`, a spot machine or a pod that is taken away.

    They run what they run until they go, and get nothing new.
    """
    from ray._private.state import state  # what Ray Train and Ray Data ask; there is no public call
    from ray.util import client

    if client.ray.is_connected():  # through ray:// it cannot be asked
        return frozenset()
    return frozenset(state.get_draining_nodes())


def _living() -> list[Mapping[str, Any]]:
    import ray

    gone = leaving()
    return [node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in gone]


def _told(amounts: Mapping[str, float]) -> str:
    words = f"{amounts.get('CPU', 0):g} CPUs and {amounts.get('GPU', 0):g} GPUs"
    return words + (f" and {amounts['memory'] / 2**30:.3g} GB of memory" if "memory" in amounts else "")
