"""What a cluster that was started here has of its own: a folder that lives as long as its process, and a token."""

import fcntl
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from shards.errors import UserError

PREFIX = "ser-ray-"
# Ray's sockets lie below it and their paths may not pass 107 characters, so it is never $TMPDIR.
BELOW = Path("/tmp")


def folder() -> tuple[Path, IO[str] | None]:
    """A new folder and the open file that shows that its session lives; folders of killed sessions are deleted first."""
    sweep(BELOW)
    made = Path(tempfile.mkdtemp(prefix="." + PREFIX, dir=BELOW))
    lock = _locked(made)  # before it has the name that others sweep
    return made.rename(made.with_name(made.name[1:])), lock


def _locked(folder: Path) -> IO[str] | None:
    """An open file that shows that the folder's session lives; None when it does. The lock ends with the process."""
    file = (folder / "lock").open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def sweep(below: Path) -> None:
    """Delete the folders of this user's sessions that were killed."""
    for folder in below.glob(PREFIX + "*"):
        try:
            if folder.stat().st_uid != os.getuid() or not (folder / "lock").exists():
                continue
            lock = _locked(folder)
        except OSError:
            continue
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            lock.close()


def remove(folder: Path) -> None:
    """Deletes a session's folder; its daemons may write their last lines while we do."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


def write_token(path: Path) -> None:
    """A new token in a new file, which nobody else may read at any moment."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))


def token_variables(path: Path | None = None) -> dict[str, str]:
    """What makes Ray ask for the token of a file; without one, for that which its own variables name, if they do.

    At an address Ray asks for none by itself, whatever they name (2.60), and the token in RAY_AUTH_TOKEN goes before any file.
    """
    if path is not None:
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path.absolute()), "RAY_AUTH_TOKEN": ""}
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return {"RAY_AUTH_MODE": "token"} if named and not os.environ.get("RAY_AUTH_MODE") else {}


def forget_token() -> None:
    """Make Ray read its mode and token from the environment as it is now.

    It reads them once, when it is imported: a process that imported Ray before this session would join without a
    token, and the next cluster of this process has another one. The mode goes first, as Ray's own tests do it: a thread
    that still says goodbye must not look for a token whose file is gone.
    """
    try:
        from ray._raylet import AuthenticationTokenLoader, Config  # pyright: ignore[reportAttributeAccessIssue]  # compiled, no stubs
    except ImportError:
        return
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def on_loopback() -> Iterator[None]:
    """A cluster that is started meanwhile listens on loopback alone.

    Ray does so at the address 127.0.0.1 only (at 127.0.0.2 on all networks), and puts the machine's own address in its place
    unless it is told that there are no other machines, as it takes it to be on macOS (2.60).
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False  # its variable is read when Ray is imported
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def refuse_missing_token() -> None:
    """Ray aborts the whole process (2.60) where it is told to use a token and finds none.

    Raises:
        UserError: Names the file.
    """
    if os.environ.get("RAY_AUTH_MODE") != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    try:
        if path.read_text().strip():
            return
        why = "it is empty"
    except OSError as error:
        why = error.strerror
    raise UserError(
        f"the cluster's token cannot be read: {why}",
        where=str(path),
        hint="copy the token file of the cluster's head there (mode 0600), or name it: cluster.token_file, RAY_AUTH_TOKEN_PATH",
    )
