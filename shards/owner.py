"""One owner of a folder in an object store, whatever machine it is on.

    .owner/000007.json     the seventh owner; the highest number owns, and renews its object while it lives

Guarantees: a number is taken by a conditional write (If-None-Match), so of all that want the folder at once one gets it. An
owner that was killed on this machine is replaced at once, one that let go too; one elsewhere, whose clock is not trusted,
after its object was watched for `LASTS` seconds without being renewed. An owner that could not renew for `FENCE` seconds
writes nothing from then on until it has taken the next number as any other would; if another has it, the folder is lost.
Gives up: a write that was under way when its owner was taken for dead may still arrive. Stores that know no conditional write
let the last of two win that come in the same instant.
"""

import json
import os
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from shards.errors import UserError
from shards.process import place, started
from shards.remote import patience
from shards.store import Store

FOLDER = ".owner"
RENEW, FENCE, LASTS = 8.0, 30.0, 45.0


class Owner:
    """Owns `store`'s folder from `take` to `release`.

    Attributes:
        number: Of this owner, above that of every one before; it stays, whatever numbers it takes later.
        before: Number of the owner before; 0 where there was none.
        lost: Set once another owner has taken over.
    """

    def __init__(self, store: Store, lasts: float = LASTS):
        self.store, self.lasts = store, lasts
        self.number, self.before, self._top = 0, 0, 0  # the last: highest number that is ours
        self.token = uuid.uuid4().hex  # by which a claim whose answer was lost is known again
        self.since = time.strftime("%Y-%m-%d %H:%M:%S %z")
        self.renewed = 0.0  # when it last began to say that it lives, and was heard
        self.lost, self._end = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def take(self, say: Callable[[str], object]) -> None:
        """Become the owner, and stay it by a thread that renews.

        Args:
            say: Hears what is being waited for.

        Raises:
            UserError: Another process owns it, and which.
        """
        while True:
            top, about = self._last()
            if about is not None and not about.get("released"):
                self._refuse_living(about, say)
            self.before = (about or {}).get("number", top)
            self.number = self._top = top + 1
            self.renewed = time.monotonic()
            if self.store.claim(_name(self._top), self._about(0)):
                break
        for name in self.store.list(FOLDER):
            if name < _name(self._top):
                self.store.delete(name)
        self._thread = threading.Thread(target=self._renew, name="owner", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Let go, so that the next owner need not wait."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()
        if self._thread is not None and not self.lost.is_set():
            self.store.put(_name(self._top), self._about(-1, released=True))

    def check(self) -> None:
        """Called before what others may see; waits for the store as long as its calls are tried again.

        Raises:
            UserError: Another process owns the folder, or who does cannot be known.
        """
        end = time.monotonic() + patience()
        while not self.lost.is_set() and time.monotonic() - self.renewed > FENCE:
            if time.monotonic() > end:
                raise UserError(
                    "the object store could not be told for too long that this process works there",
                    where=self.store.url,
                    hint="what is committed stays; the same command goes on where it stopped",
                )
            self.lost.wait(0.1)
        if self.lost.is_set():
            raise UserError(
                "another process took this run over: the object store could not be reached for too long",
                where=self.store.url,
                hint="look who owns it now before you run the same command again: what is committed there stays",
            )

    def _renew(self) -> None:
        beat, asked = 0, self.renewed
        # What took long told late: then it is told again at once.
        while not self._end.wait(max(0.0, asked + RENEW - time.monotonic())):
            beat, asked = beat + 1, time.monotonic()
            try:
                if not self._prolong(beat):
                    self.lost.set()
                    return
            except UserError:
                pass  # `check` counts the time

    def _prolong(self, beat: int) -> bool:
        """Say that this owner lives; False when another has taken over."""
        top, about = self._last()
        if (about or {}).get("token") != self.token:
            return False
        self._top, asked = top, time.monotonic()
        self.store.put(_name(self._top), self._about(beat))
        if (
            time.monotonic() - self.renewed > FENCE
        ):  # someone may have seen the silence and be about to take it
            asked = time.monotonic()
            if not self.store.claim(_name(self._top + 1), self._about(beat)):
                return False
            self._top += 1
        self.renewed = asked
        return True

    def _last(self) -> tuple[int, dict[str, Any] | None]:
        """The highest number and what its owner says; (0, None) where there is none."""
        while names := self.store.list(FOLDER):
            try:
                about = json.loads(self.store.read(names[-1]))
            except FileNotFoundError:
                continue  # the next owner has come and removed it
            return int(names[-1].rpartition("/")[2].partition(".")[0]), about
        return 0, None

    def _refuse_living(self, about: dict[str, Any], say: Callable[[str], object]) -> None:
        """Returns once the owner is known to be dead."""
        who = f"process {about['pid']} on {about['place']['host']} since {about['since']}"
        if about["place"] == place():
            if started(about["pid"]) != about["start"]:
                return
        else:
            say(f"waiting up to {self.lasts:.0f} s to see whether {who} still works on {self.store.url}")
            end = time.monotonic() + self.lasts
            while time.monotonic() < end:
                time.sleep(min(1.0, self.lasts / 5))
                if self._last()[1] != about:
                    break
            else:
                return
            if (self._last()[1] or {}).get("released"):
                return
        raise UserError(
            "another process works in this run directory",
            where=f"{self.store.url}: owned by {who}",
            hint=f"wait until it ends, or stop it (kill {about['pid']}, on {about['place']['host']}), or give this run a "
            "directory of its own (run_dir=URL)",
        )

    def _about(self, beat: int, **more: Any) -> bytes:
        about = {
            "pid": os.getpid(),
            "start": started(os.getpid()),
            "place": place(),
            "since": self.since,
            "token": self.token,
            "number": self.number,
            "beat": beat,
        }
        return json.dumps(about | more, sort_keys=True).encode()


def _name(number: int) -> str:
    return f"{FOLDER}/{number:06d}.json"
