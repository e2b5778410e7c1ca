"""The driver of a sweep: it alone asks the study for trials and tells it how they ended; the trials are Ray tasks.

Guarantees: the study is the one truth. A driver that is killed at any moment leaves trials that the study calls running; the next
one finds each of them, waits until nobody works in its folder any more (`cluster.lease`), takes an outcome that lies there,
and else starts it again in the same folder, where what was finished is kept. So no trial is lost and none is told twice. A trial
that dies by itself is started again within its budget; nodes and drivers that die are not held against it.
A signal that warns of an end is heard between two rounds, when the study is whole: the trainings save and end, and the next driver
goes on with them.
Gives up: one driver at a time.
"""

import contextlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from cluster import lease, reaper, trials
from cluster.session import Session
from cluster.study import sampler
from ser.space import propose, told
from ser.stopping import EXIT_CODE, WITHIN, saving
from ser.sweep import SweepConfig, grid_of
from shards.errors import UserError

TICK = 0.5
MOST_FAILED_IN_A_ROW = 5
MOST_INTERRUPTED = 25  # a trial that takes its machine with it must end, too


@dataclass
class Sweep:
    """A study that is driven.

    Attributes:
        study: The one truth.
        config: The recipe's.
        folder: Of the trials.
        prepare: Called with a trial's number, its folder and its values before it starts; may refuse them.
        entry: "module:function" that is called with a trial's folder in a process of its own.
        preload: Modules that this process may have been forked with, separated by commas.
        so_far: Step -> value of a trial that runs, for the pruner; by its number and folder.
        most: Folds or steps of a whole trial: nothing is pruned that is through.
        say: Called with a line for people.
        show: Called with (trials that have ended, trials in all).
    """

    study: optuna.Study
    config: SweepConfig
    folder: Path
    prepare: Callable[[int, Path, dict[str, Any]], None]
    entry: str
    preload: str = ""
    so_far: Callable[[int, Path], dict[int, float]] = lambda number, folder: {}
    most: int = 1
    say: Callable[[str], None] = print
    show: Callable[[int, int], None] = lambda done, total: None

    def folder_of(self, number: int) -> Path:
        """Where a trial lies."""
        return self.folder / f"{number:05d}"

    @property
    def total(self) -> int:
        """Trials asked for: no more than a grid has."""
        if self.config.sampler.kind != "grid":
            return self.config.trials
        return min(self.config.trials, math.prod(map(len, grid_of(self.config.space).values())))


def drive(sweep: Sweep, session: Session) -> None:
    """Run trials on a session until all that were asked for have ended.

    Raises:
        UserError: No machine can hold a trial; one does not share the session's folders; or nothing but failures comes back.
        Stopped: No machine can hold a trial any more.
    """
    driver = _Driver(sweep, session)
    try:
        driver.loop()
    finally:
        driver.stop()


class _Driver:
    def __init__(self, sweep: Sweep, session: Session):
        import ray

        self.ray, self.x, self.study, want = ray, sweep, sweep.study, sweep.config.resources
        self.task = ray.remote(trials.attend).options(**trials.options(want))
        self.home = replace(session.home, folder=os.getcwd())
        self.room = session.room(want.cpus, want.gpus, memory=trials.memory(want), keys="sweep.resources")
        # Of a joined cluster, which grows and shrinks, those that the session may use.
        self.most = lambda: int(session.resources()["CPU"] / want.cpus + 1e-9)
        # Left by a driver that ended, or died under this one: they go first.
        self.waiting = [t.number for t in self._all() if t.state == TrialState.RUNNING]
        self.running: dict[Any, int] = {}
        self.handles: dict[int, optuna.Trial] = {}
        self.failed_in_a_row, self._found = 0, (-math.inf, 0)
        for number in self.waiting:
            if sweep.folder_of(number).exists():
                self._count(number, "interruptions")
        if self.waiting:
            sweep.say(f"{len(self.waiting)} trials were running when the last driver ended: they go on")

    def loop(self) -> None:
        """Until nothing runs and nothing is left to start."""
        while True:
            room = self._capacity() if self.waiting or self._asked() < self.x.total else 0
            with saving(_not_now):
                self._fill(room)
            self.x.show(sum(t.state.is_finished() for t in self._all()), self.x.total)
            if not self.running and not self.waiting:
                return
            done: list[Any] = []
            if self.running:
                done, _ = self.ray.wait(list(self.running), num_returns=1, timeout=TICK)
            else:
                time.sleep(TICK)
            with saving(_not_now):
                for reference in done:
                    self._settle(reference)
                if self.x.config.pruner.kind != "none":
                    self._prune()

    def _fill(self, room: int) -> None:
        """Start what there is room for: first what waits, then new trials."""
        for number in list(self.waiting):
            if len(self.running) >= room:
                return
            if not lease.alive(self.x.folder_of(number)):  # else whoever works there has not ended yet
                self.waiting.remove(number)
                self._start(number)
        while (asked := self._asked()) < self.x.total and len(self.running) < room:
            self.study.sampler = sampler(self.x.config, asked)
            trial = self.study.ask()
            self.handles[trial.number] = trial
            self._start(trial.number)

    def _start(self, number: int) -> None:
        folder = self.x.folder_of(number)
        given = propose(self._handle(number), self.x.config.space)
        if trials.outcome(folder) is not None:
            self._tell(number)
            return
        try:
            self.x.prepare(number, folder, given)
        except UserError as error:
            self._fail(number, f"{told(given)}: {error.what}")
            return
        (folder / reaper.STOP).unlink(missing_ok=True)
        reference = self.task.remote(self.x.entry, str(folder), self.home, self.x.preload)
        self.running[reference] = number

    def _settle(self, reference: Any) -> None:
        """A task has come back: with an outcome in the folder, or without one."""
        from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

        number = self.running.pop(reference)
        try:
            code = self.ray.get(reference)
        except RayTaskError as error:
            raise (error.cause if isinstance(error.cause, UserError) else error) from None
        except OutOfMemoryError:
            code = -9
        except RayError:
            code = None  # its worker or its node is gone
        if self._finished(number):  # pruned
            return
        folder = self.x.folder_of(number)
        if trials.outcome(folder) is not None:
            self._tell(number)
        elif code is None or code == EXIT_CODE:
            if self._count(number, "interruptions") > MOST_INTERRUPTED:
                self._fail(number, f"interrupted {MOST_INTERRUPTED} times")
            else:
                self.waiting.append(number)
        else:
            died = self._count(number, "failures")
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            why = f"died {died} times, last by {how}: {trials.last_words(folder)}"
            if died > self.x.config.retries:
                self._fail(number, why)
            else:
                self.x.say(f"trial {number} {why}; started again")
                self.waiting.append(number)

    def _tell(self, number: int) -> None:
        """The study hears what lies in a trial's folder."""
        found = trials.outcome(self.x.folder_of(number))
        assert found is not None
        if found.values is None or not all(map(math.isfinite, found.values)):
            self._fail(number, found.refused or f"its values are not finite: {found.values}")
            return
        self._report(number)
        self.study.tell(number, found.values)
        self.failed_in_a_row = 0
        self.x.say(f"trial {number}: {self._judged(number)}{self._best()}")

    def _judged(self, number: int) -> str:
        values = self._all()[number].values or []
        objectives = self.x.config.objectives
        return ", ".join(f"{o.title} {v:.4g}" for o, v in zip(objectives, values, strict=True))

    def _best(self) -> str:
        if len(self.x.config.objectives) > 1:
            return f" ({len(self.study.best_trials)} on the front)"
        best = self.study.best_trial
        return f" (best {best.value:.4g}, trial {best.number})"

    def _fail(self, number: int, why: str) -> None:
        self._handle(number).set_user_attr("why", why)
        self.study.tell(number, state=TrialState.FAIL)
        self.x.say(f"trial {number} failed: {why}")
        self.failed_in_a_row += 1
        if self.failed_in_a_row >= MOST_FAILED_IN_A_ROW:
            raise UserError(
                f"{self.failed_in_a_row} trials failed one after the other; the last: {why}",
                where=str(self.x.folder_of(number)),
                hint="look at log.txt there; the same command goes on with new trials",
            )

    def _prune(self) -> None:
        """End the trials that the pruner gives up."""
        for number in self.running.values():
            folder = self.x.folder_of(number)
            if self._finished(number) or trials.outcome(folder) is not None:
                continue
            last = self._report(number)
            if last is not None and last < self.x.most and self._handle(number).should_prune():
                self.study.tell(number, state=TrialState.PRUNED)
                trials.request_stop(folder, now=True)
                self.x.say(f"trial {number} pruned at {self.x.config.pruner.by[:-1]} {last} of {self.x.most}")
                self.failed_in_a_row = 0

    def _report(self, number: int) -> int | None:
        """Tell the study what a trial has come to so far; how far that is, None when there is nothing new."""
        trial, known = self._handle(number), self._all()[number].intermediate_values
        found = self.x.so_far(number, self.x.folder_of(number))
        new = {step: value for step, value in found.items() if step not in known and math.isfinite(value)}
        for step, value in new.items():
            trial.report(value, step)
        return len(found) if new and self.x.config.pruner.by == "folds" else max(new, default=None)

    def _handle(self, number: int) -> optuna.Trial:
        """Optuna's handle of a trial that runs, made again after a restart."""
        if number not in self.handles:
            self.study.sampler = sampler(self.x.config, number)
            self.handles[number] = optuna.Trial(self.study, self._all()[number]._trial_id)
        return self.handles[number]

    def _count(self, number: int, what: str) -> int:
        count = self._all()[number].user_attrs.get(what, 0) + 1
        self._handle(number).set_user_attr(what, count)
        return count

    def _all(self) -> list[optuna.trial.FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _asked(self) -> int:
        """Trials that were started; those that someone has put in the queue are still to come."""
        return sum(trial.state != TrialState.WAITING for trial in self._all())

    def _finished(self, number: int) -> bool:
        return self._all()[number].state.is_finished()

    def _capacity(self) -> int:
        """Trials that may run at once; nodes come and go, so it is asked now and then.

        Raises:
            UserError, Stopped: No node can hold one (any more), and none has come within the session's `wait`.
        """
        now = time.monotonic()
        if now - self._found[0] > 5:
            self.room.wait()
            self._found = (time.monotonic(), min(self.room.now(), self.most()))
        return min(self._found[1], self.x.config.parallel or self._found[1])

    def stop(self) -> None:
        """End what still runs: each training is asked to save where it is, and reaped."""
        if not self.running:
            return
        for number in self.running.values():
            with contextlib.suppress(OSError):
                trials.request_stop(self.x.folder_of(number), now=self._finished(number))
        self.ray.wait(list(self.running), num_returns=len(self.running), timeout=WITHIN + 5)


def _not_now() -> None:
    """A signal waits for the end of what is being told to the study."""
