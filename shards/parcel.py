"""Objects with large arrays on their way from worker processes to their parent.

Guarantees: arrays are copied twice and never through a pipe's 64 KB window, which costs a process switch each and
was seen five times slower on a busy machine; the memory has no name, so nothing is left behind however the processes
end; /dev/shm and the limit on open files play no part. An arriving array is writable and the receiver's own.
Gives up: each worker has a fixed number of boxes used in turn: it must not pack into a box whose parcel is not yet
opened (checked). Without memfd (not Linux) everything goes through the pipe.
"""

import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Parcel:
    """What goes through the pipe: the pickled object without its arrays, and where and how long those are.

    Packing is left to the worker's own thread, never to the pickling of its queue's background thread: that one may
    call into torch while the interpreter of a worker that was told to end goes down, which aborts the process.
    """

    data: bytes
    box: tuple[int, int] = (-1, -1)
    lengths: tuple[int, ...] = ()
    number: int = 0


class Boxes:
    """`count` boxes for each worker: files without a name that live in memory. Sent to workers by spawning them."""

    def __init__(self, workers: int, count: int):
        self.count, self._packed = count, 0
        makeable = hasattr(os, "memfd_create")
        self.files = [
            [os.memfd_create("box") for _ in range(count)] for _ in range(workers if makeable else 0)
        ]

    def __getstate__(self) -> dict[str, Any]:
        return {"count": self.count, "_packed": 0, "files": [[DupFd(fd) for fd in row] for row in self.files]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.files = [[fd.detach() for fd in row] for row in self.files]

    def pack(self, worker: int, content: Any) -> Parcel:
        """Called in a worker: puts the object into the worker's next box."""
        if not self.files:
            return Parcel(pickle.dumps(content, protocol=5))
        buffers: list[pickle.PickleBuffer] = []
        data = pickle.dumps(content, protocol=5, buffer_callback=buffers.append)
        raws = [buffer.raw() for buffer in buffers]
        self._packed += 1
        box = (worker, self._packed % self.count)
        number = np.array([self._packed], np.int64)
        offset = 0
        for raw in (number.view(np.uint8).data, *raws):
            done = 0
            while done < raw.nbytes:
                done += os.pwrite(self.files[box[0]][box[1]], raw[done:], offset + done)
            offset += raw.nbytes
        return Parcel(data, box, tuple(raw.nbytes for raw in raws), self._packed)

    def open(self, parcel: Parcel) -> Any:
        """Called in the parent: the object, its arrays copied out of the box."""
        if parcel.box[0] < 0:
            return pickle.loads(parcel.data)
        file = self.files[parcel.box[0]][parcel.box[1]]
        buffers = _read(file, 0, (8, *parcel.lengths))
        assert buffers[0].view(np.int64)[0] == parcel.number, "a box was filled again before it was opened"
        return pickle.loads(parcel.data, buffers=buffers[1:])

    def close(self) -> None:
        """Gives the memory back once the workers have ended."""
        while self.files:
            for file in self.files.pop():
                os.close(file)


def _read(file: int, offset: int, lengths: Sequence[int]) -> list[np.ndarray]:
    buffers = [np.empty(length, np.uint8) for length in lengths]
    for buffer in buffers:
        done = 0
        while done < len(buffer):
            got = os.preadv(file, [buffer[done:]], offset + done)
            assert got > 0, "a box is shorter than its parcel says"
            done += got
        offset += len(buffer)
    return buffers
