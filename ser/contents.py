"""What lies in files, by sha256; a file that was read once and has not changed since is not read again.

Guarantees: a hash is taken again when a file's size, modification time or inode differs; hashes are shared by all
processes of a machine through `shards.cache` (64 bytes each).
Gives up: a file that changes without any of the three changing.
"""

import contextlib
import hashlib
from functools import lru_cache
from pathlib import Path

from shards.cache import Cache
from shards.errors import UserError

# What a pretrained model is read from; cards, pictures and other frameworks' weights change nothing.
READ = (".json", ".safetensors", ".bin", ".txt", ".model", ".jinja")


def sha256_of(path: Path) -> str:
    """sha256 of a file, from memory or cache where it has not changed."""
    real = path.resolve()
    state = real.stat()
    return _hash(str(real), state.st_size, state.st_mtime_ns, state.st_ino)


@lru_cache(maxsize=4096)
def _hash(path: str, *state: int) -> str:
    name = f"sha256-{hashlib.sha256(repr((path, state)).encode()).hexdigest()}"
    cache, kept = Cache(), None
    with contextlib.suppress(OSError):  # it may vanish any time, and is only a help
        kept = cache.get(name)
        text = Path(kept).read_text() if kept else ""
        if len(text) == 64:
            return text
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    with contextlib.suppress(OSError, UserError):
        cache.put(name, found.encode())
    return found


def of_folder(folder: str | Path) -> dict[str, str]:
    """sha256 by name of the files that a pretrained model in `folder` is read from."""
    root = Path(folder).expanduser()
    files = (path for path in sorted(root.rglob("*")) if path.is_file() and path.suffix in READ)
    return {str(path.relative_to(root)): sha256_of(path) for path in files}
