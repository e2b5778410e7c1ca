"""Reading a job's log files, and waiting for more of them while it lives."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from launch.record import Live, Record

PAUSE = 0.5  # seconds between two looks


def follow_files(
    record: Record, files: Callable[[], list[Path]], status: Callable[[Record], Live], follow: bool
) -> Iterator[str]:
    """Text of the files in pieces; with `follow`, of what is added until the job has ended.

    Several files (the jobs of an array) are told apart by a line with their name.
    """
    read: dict[Path, int] = {}
    last: Path | None = None
    while True:
        over = not follow or status(record).phase in (
            "ended",
            "unknown",
        )  # asked first: nothing is printed after it
        for path in files():
            if not path.is_file():
                continue
            with path.open("rb") as file:
                file.seek(read.get(path, 0))
                data = file.read()
            if not data:
                continue
            read[path] = read.get(path, 0) + len(data)
            if last is not None and last != path:
                yield f"\n== {path.name}\n"
            last = path
            yield data.decode(errors="replace")
        if over:
            return
        time.sleep(PAUSE)
