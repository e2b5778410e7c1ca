"""Small synthetic corpora and comparisons for the tests of packing."""

import hashlib
import os
import socket
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile

from shards.utterance import Utterance, Vote

RATES = (16_000, 22_050, 48_000, 8_000)


def corpus(folder: Path, name: str = "toy", count: int = 12, speakers: int = 3) -> list[Utterance]:
    """`count` short utterances of coloured noise at several rates, with every kind of field somewhere."""
    folder = Path(folder) / name
    folder.mkdir(parents=True, exist_ok=True)
    out = []
    for i in range(count):
        rng = np.random.default_rng([i, *name.encode()])
        rate = RATES[i % len(RATES)]
        path = folder / f"{i}.wav"
        soundfile.write(path, 0.1 * np.cumsum(rng.normal(0, 0.1, rate // 10 + 37 * i)) % 0.5, rate)
        rated = i % 3 == 0
        out.append(
            Utterance(
                key=f"{name}-{i}",
                corpus=name,
                audio=str(path),
                recording=f"r{i // 2}",
                speaker=f"s{i % speakers}" if i % 7 != 6 else None,
                language="fi" if i % 2 else "en",
                age=20 + i,
                text=f"sana {i} \u00e4\u00f6" if i % 2 else None,
                text_source="human" if i % 2 else "none",
                label=("happy", "sad", None)[i % 3],
                votes=[Vote("happy", "r1"), Vote("sad")] if rated else (),
                valence=1.5 if rated else None,
                arousal=3 if rated else None,
                scale=(1, 5) if rated else None,
                licence="CC0",
                extra={"take": i, "scripted": True},
            )
        )
    return out


def tree(folder: Path) -> dict[str, str]:
    """Relative path -> sha256 of every file below a folder, hidden ones too."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


def flip(path: Path, offset: int) -> None:
    """Damages one byte of a file."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x55
    os.chmod(path, 0o644)
    path.write_bytes(data)


@contextmanager
def s3_server(bucket: str):
    """A real S3 server process-wide on loopback; sets AWS_* for fsspec and yields the bucket's URL."""
    from moto.server import ThreadedMotoServer

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    names = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    saved = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    server.start()
    try:
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir(bucket)
        yield f"s3://{bucket}"
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()
        for name, value in saved.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
