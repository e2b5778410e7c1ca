"""Where a task runs: in the driver's folder, on a machine that can hold it, and only where Ray is installed."""

import importlib.util
import os

from shards.errors import UserError


def require_ray() -> None:
    """Raises UserError where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise UserError(
            "this needs Ray, which is not installed",
            where="cluster.session",
            hint="pip install 'ser-distill[cluster]'",
        )


def go_home(folder: str) -> None:
    """Called by every task before it works: makes relative paths mean what they mean to the driver.

    Raises:
        UserError: This machine has no such folder.
    """
    try:
        if os.getcwd() == folder:
            return
    except FileNotFoundError:  # the worker's own folder was deleted
        pass
    try:
        os.chdir(folder)
    except OSError as error:
        raise UserError(
            f"the folder in which the command was started is not on this worker ({error.strerror})",
            where=f"{os.uname().nodename}:{folder}",
            hint="start it in a folder that every machine of the cluster has: a shared one, or / with absolute paths in the recipe",
        ) from error


def refuse_impossible(num_cpus: float, num_gpus: float) -> None:
    """Refuses a task that would wait for ever: no machine of a cluster that does not grow can hold it.

    Raises:
        UserError: Names what is asked and what is there.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    asked = {"CPU": num_cpus, "GPU": num_gpus}
    if any(all(node.get(name, 0) >= count for name, count in asked.items()) for node in nodes):
        return
    have = {name: max((node.get(name, 0) for node in nodes), default=0) for name in asked}
    raise UserError(
        f"a task asks for {num_cpus:g} CPUs and {num_gpus:g} GPUs; this cluster has {have['CPU']:g} and {have['GPU']:g}",
        where="cluster.cpus_per_task, cluster.gpus_per_task",
        hint="ask for less, raise cluster.cpus, or join a cluster that has them (cluster.address)",
    )
