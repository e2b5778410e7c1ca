"""What travels to a cluster that has no folder in common with this machine: code, the recipe, and what the profile ships.

Guarantees: nothing travels that is not listed by `contents`, which `--dry-run` prints; data, runs, environments and files
that hold secrets stay, wherever they lie; no link leads out of the working folder. Same files, same bytes.
"""

import fnmatch
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from shards.errors import UserError

PACKAGES = ("shards", "ser", "cluster", "launch")
# Names of files and folders that never travel, at any depth.
BULK = (
    "data", "runs", "datasets", "checkpoints", "wandb", "mlruns", "tensorboard", "__pycache__", "*.pyc", "*.tar", "*.tar.*",
    "*.zip", "*.wav", "*.flac", "*.mp3", "*.ogg", "*.arrow", "*.parquet", "*.safetensors", "*.pt", "*.pth", "*.bin", "*.onnx",
    ".git", ".venv", "venv", "node_modules", ".cache", ".*_cache", "*.egg-info",
)  # fmt: skip
SECRETS = (
    ".env", ".env.*", "*.env", ".envrc", ".netrc", "_netrc", ".pgpass", ".pypirc", ".git-credentials", ".aws", ".azure", ".ssh",
    ".kube", ".docker", ".gcloud", ".config", ".kaggle", ".huggingface", ".boto", ".s3cfg", "*.pem", "*.key", "*.p12", "*.pfx",
    "*.jks", "*.kdbx", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*credential*", "*secret*", "*password*",
    "*token", "*token.*", "*_token*", "*-token*", "*service-account*.json", "*service_account*.json",
)  # fmt: skip
EPOCH = (1980, 1, 1, 0, 0, 0)


def stays(path: PurePosixPath, exclude: Iterable[str] = ()) -> bool:
    """Whether any part of a relative path is one that never travels, or the path fits a pattern of the profile."""
    patterns = [p.rstrip("/") for p in (*BULK, *SECRETS, *exclude)]
    for part in path.parts:
        if any(fnmatch.fnmatchcase(part.lower(), pattern.lower()) for pattern in patterns):
            return True
    return any(fnmatch.fnmatchcase(str(path), p) or fnmatch.fnmatchcase(str(path), f"{p}/*") for p in exclude)


def shipped(folder: Path, ship: Iterable[str], exclude: Iterable[str] = ()) -> Iterator[tuple[str, Path]]:
    """(name, file) of what a profile ships from the working folder.

    Raises:
        UserError: An entry is not there, or lies outside of the folder.
    """
    root, exclude = folder.resolve(), list(exclude)
    for entry in ship:
        top = (root / entry).resolve()
        if not top.is_relative_to(root):
            raise UserError("only what lies in the working folder travels", where=f"ray.ship: {entry}", hint=f"move it below {root}")  # fmt: skip
        if not top.exists():
            raise UserError("there is nothing to ship", where=f"ray.ship: {top}", hint="mend the profile")
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            name = path.relative_to(root)
            if (
                path.is_file()
                and path.resolve().is_relative_to(root)
                and not stays(PurePosixPath(name), exclude)
            ):
                yield name.as_posix(), path


def code() -> Iterator[tuple[str, Path]]:
    """(name, file) of this installation's own packages."""
    above = Path(__file__).resolve().parent.parent
    for package in PACKAGES:
        for path in sorted((above / package).rglob("*")):
            if path.is_file() and path.suffix in (".py", ".yaml", ".html"):
                yield path.relative_to(above).as_posix(), path


def contents(
    folder: Path, ship: Iterable[str], exclude: Iterable[str], with_code: bool, limit_mb: float
) -> dict[str, Path]:
    """Everything that travels but the recipe, by its name there.

    Raises:
        UserError: It is more than `limit_mb`.
    """
    found = dict(code()) if with_code else {}
    found |= dict(shipped(folder, ship, exclude))
    sizes = {name: path.stat().st_size for name, path in found.items()}
    if sum(sizes.values()) > limit_mb * 1e6:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        raise UserError(
            f"{sum(sizes.values()) / 1e6:.0f} MB would travel to the cluster, more than ray.limit_mb = {limit_mb:g}",
            where=", ".join(f"{name} ({sizes[name] / 1e6:.1f} MB)" for name in largest),
            hint="add what is not needed to ray.exclude, or name less in ray.ship",
        )
    return found


def write(path: Path, files: dict[str, Path], texts: dict[str, str]) -> None:
    """A zip of files and texts by name, the same bytes for the same contents."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files.keys() | texts.keys()):
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, texts[name].encode() if name in texts else files[name].read_bytes())
