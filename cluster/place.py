"""Where a task runs: in the driver's folder, on a machine that shares it, over the right network."""

import importlib.util
import os
import secrets
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shards.errors import UserError

MARK = ".driver-"
_seen: set["Home"] = set()  # by this process


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


@dataclass(frozen=True)
class Home:
    """The driver's folder, and files (path, content) that a machine sees which shares the driver's other folders."""

    folder: str
    marks: tuple[tuple[str, str], ...] = ()

    def enter(self) -> None:
        """Go there; once a process, make sure that what is written here is what the driver reads.

        Raises:
            UserError: Names the machine and the folder that it does not share.
        """
        go_home(self.folder)
        if self in _seen:
            return
        for path, content in self.marks:
            if _text(Path(path)) != content:
                raise UserError(
                    "a machine of the cluster does not share this folder with the one that runs the command",
                    where=f"{own_address()}: {os.path.dirname(path)}",
                    hint="put data.path and run_dir on a file system that every machine mounts at the same place, or take the machine out",
                )
        _seen.add(self)


@contextmanager
def marked(folders: Sequence[Path]) -> Iterator[Home]:
    """The home of this process's tasks while the context lasts: each folder that is there gets a mark, which goes at the end."""
    made: dict[Path, str] = {}
    try:
        for folder in filter(Path.is_dir, folders):
            _sweep_marks(folder)
            path = folder.resolve() / f"{MARK}{os.uname().nodename}-{os.getpid()}"
            made[path] = secrets.token_hex(8)
            path.write_text(made[path])
        yield Home(os.getcwd(), tuple((str(path), text) for path, text in made.items()))
    finally:
        for path in made:
            path.unlink(missing_ok=True)


def _sweep_marks(folder: Path) -> None:
    """Delete the marks of this machine's drivers that were killed."""
    for path in folder.glob(f"{MARK}{os.uname().nodename}-*"):
        if not Path("/proc", path.name.rpartition("-")[2]).exists():
            path.unlink(missing_ok=True)


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def own_address() -> str:
    """The address under which the cluster knows this machine."""
    import ray

    return ray.util.get_node_ip_address()


def bind_gloo() -> None:
    """Let this process's gloo talk over the interface by which the cluster knows this machine, unless the user chose one.

    Left alone it takes the address that the host's own name resolves to, on many machines a loopback one, and
    ranks on other machines are refused.
    """
    import psutil

    own = own_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == own for address in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def refuse_unreachable(address: str, patience: float = 5.0) -> None:
    """Asks a cluster at "host:port" who it is before Ray tries for long and gives up in general words.

    Raises:
        UserError: Nobody answers there, the token is not the cluster's, or what answers is no Ray.
    """
    from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]  # compiled, no stubs
    from ray.exceptions import AuthenticationError, RayError

    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", address)
    if address == "auto" or "://" in address:
        return  # Ray looks for it itself
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=patience).close()
    except ValueError:
        raise UserError(
            f"{address!r} is no address of a cluster",
            where="cluster.address",
            hint="auto, host:port of its head, or ray://host:port",
        ) from None
    except OSError as error:
        raise UserError(
            f"no Ray cluster answers at this address ({error.strerror or error})",
            where=f"cluster.address={address}",
            hint="is its head running (ray start --head prints the address), and its port open to this machine?",
        ) from None
    try:
        GcsClient(address=address).get_all_node_info(timeout=4 * patience)
    except AuthenticationError as error:
        raise UserError(
            "the cluster did not accept the token" if _has_token() else "the cluster asks for a token",
            where=f"cluster.address={address}",
            hint="name the token file that its head was started with: cluster.token_file, or RAY_AUTH_TOKEN_PATH",
        ) from error
    except (RayError, OSError, RuntimeError) as error:
        raise UserError(
            f"what answers at this address is not a Ray head that this Ray can talk to ({str(error).splitlines()[0]})",
            where=f"cluster.address={address}",
            hint="give the head's own port (6379 unless told), not the dashboard's; versions of Ray must be the same",
        ) from None


def _has_token() -> bool:
    return os.environ.get("RAY_AUTH_MODE") == "token"
