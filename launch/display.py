"""What a person sees while something runs: bars with ETA on a terminal, one plain line now and then elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

PLAIN_EVERY = 10.0


class Bar:
    """One stage's progress."""

    def __init__(self, title: str, unit: str, progress: Progress | None, console: Console):
        self.title, self.unit, self.progress, self.console = title, unit, progress, console
        self.task = progress.add_task(title, total=None, pace="") if progress is not None else None
        self.began = self.printed = time.perf_counter()
        self.ended = False

    def update(self, done: float, total: float, pace: str = "") -> None:
        """`done` of `total` are finished; `pace` says how fast, where that is not `done` a second."""
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, completed=done, total=total, pace=pace)
            return
        now = time.perf_counter()
        last = done >= total and not self.ended
        if now - self.printed >= PLAIN_EVERY or last:
            self.printed, self.ended = now, self.ended or last
            elapsed = now - self.began
            left = elapsed / done * (total - done) if done else float("nan")
            speed = done / elapsed if elapsed else 0.0
            rate = f"{speed:.1f} {self.unit}/s" if speed >= 1 else f"{60 * speed:.1f} {self.unit}/min"
            shown = pace or (rate if self.unit else "")
            self.console.print(
                f"{self.title}: {int(done)}/{total:.0f}  {elapsed:.0f} s, {left:.0f} s left"
                + (f"  {shown}" if shown else "")
            )


NAME = 24  # characters of a row's name that are never folded


class Display:
    """Progress and messages on the standard output."""

    def __init__(self, quiet: bool = False):
        self.console = Console(quiet=quiet, highlight=False, soft_wrap=True)
        self.errors = Console(stderr=True, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """A plain line."""
        self.console.print(text, markup=False)

    def warn(self, text: str) -> None:
        """A line that should be read."""
        self.errors.print(f"warning: {text}", style="yellow", markup=False)

    @contextmanager
    def bar(self, title: str, unit: str = "") -> Iterator[Bar]:
        """A bar for one stage; on a terminal it moves, elsewhere a line is printed every ten seconds."""
        if not (self.console.is_terminal and sys.stdout.isatty()):
            yield Bar(title, unit, None, self.console)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[pace]}"),
        )
        with Progress(*columns, console=self.console) as progress:
            yield Bar(title, unit, progress, self.console)

    def table(self, title: str, heads: list[str], rows: list[tuple[Any, ...]]) -> None:
        """A table of text cells."""
        table = Table(title=title, title_justify="left")
        longest = max((len(str(row[0])) for row in rows), default=0)
        for number, head in enumerate(heads):  # what a row is called stays whole on narrow terminals
            table.add_column(head, overflow="fold", min_width=min(longest, NAME) if number == 0 else None)
        for row in rows:
            table.add_row(*(str(cell) for cell in row))
        self.console.print(table)
