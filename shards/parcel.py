"""Objects with large arrays on their way from worker processes to their parent.

Guarantees: arrays are copied twice and never through a pipe's 64 KB window, which costs a process switch each and
was seen five times slower on a busy machine; the memory has no name, so nothing is left behind however the processes
end; /dev/shm and the limit on open files play no part. An arriving array is writable and the receiver's own.
Gives up: each worker has a fixed number of boxes used in turn: it must not pack into a box whose parcel is not yet
opened (checked). Without memfd (not Linux) everything goes through the pipe.
"""

import os
import pickle
from dataclasses import dataclass
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np

STRETCH = (
    1 << 36
)  # bytes between two boxes of a file; such files have holes, only what is written takes memory


@dataclass(frozen=True, slots=True)
class Parcel:
    """What goes through the pipe: the pickled object without its arrays, and where and how long those are.

    Packing is left to the worker's own thread, never to the pickling of its queue's background thread: that one may
    call into torch while the interpreter of a worker that was told to end goes down, which aborts the process.
    """

    data: bytes
    worker: int = -1
    number: int = 0
    lengths: tuple[int, ...] = ()


class Boxes:
    """`count` boxes for each worker: stretches of a file without a name that lies in memory, one file a worker.

    Reaches the workers by being pickled into them as they start (spawn or forkserver), at no other time.
    """

    def __init__(self, workers: int, count: int):
        self.count, self._packed = count, 0
        makeable = hasattr(os, "memfd_create")
        self.files = [os.memfd_create("boxes") for _ in range(workers if makeable else 0)]

    def __getstate__(self) -> dict[str, Any]:
        return {"count": self.count, "_packed": 0, "files": [DupFd(file) for file in self.files]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.files = [file.detach() for file in state["files"]]

    def pack(self, worker: int, content: Any) -> Parcel:
        """Called in a worker: puts the object into the worker's next box."""
        if not self.files:
            return Parcel(pickle.dumps(content, protocol=5))
        buffers: list[pickle.PickleBuffer] = []
        data = pickle.dumps(content, protocol=5, buffer_callback=buffers.append)
        self._packed += 1
        raws = [np.array([self._packed], np.int64).view(np.uint8).data, *(buffer.raw() for buffer in buffers)]
        offset = (self._packed % self.count) * STRETCH
        for raw in raws:
            done = 0
            while done < raw.nbytes:
                done += os.pwrite(self.files[worker], raw[done:], offset + done)
            offset += raw.nbytes
        return Parcel(data, worker, self._packed, tuple(raw.nbytes for raw in raws))

    def open(self, parcel: Parcel) -> Any:
        """Called in the parent: the object, its arrays copied out of the box."""
        buffers = [np.empty(length, np.uint8) for length in parcel.lengths]
        offset = (parcel.number % self.count) * STRETCH
        for buffer in buffers:
            done = 0
            while done < len(buffer):
                got = os.preadv(self.files[parcel.worker], [buffer[done:].data], offset + done)
                assert got > 0, "a box is shorter than its parcel says"
                done += got
            offset += len(buffer)
        if buffers:
            number = int(buffers.pop(0).view(np.int64)[0])
            assert number == parcel.number, "a box was filled again before it was opened"
        return pickle.loads(parcel.data, buffers=buffers)

    def close(self) -> None:
        """Gives the memory back, once the workers have ended."""
        while self.files:
            os.close(self.files.pop())
