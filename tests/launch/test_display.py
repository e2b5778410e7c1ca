"""launch.display: what a person sees, on a terminal and in a log file."""

import io

import pytest
from rich.console import Console

from launch import display as display_module
from launch.display import Display


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved."""
    now = [100.0]
    monkeypatch.setattr(display_module.time, "perf_counter", lambda: now[0])
    return now


def test_a_log_file_gets_a_line_every_ten_seconds_and_a_last_one(clock, capsys):
    shown = Display()
    with shown.bar("pack", "utterances") as bar:
        for done, second in ((0, 0), (5, 4), (10, 10), (15, 19), (20, 20), (40, 21)):
            clock[0] = 100.0 + second
            bar.update(done, 40)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["pack: 10/40", "pack: 20/40", "pack: 40/40"]
    assert "10 s, 30 s left" in lines[0] and "1.0 utterances/s" in lines[0]
    assert "21 s, 0 s left" in lines[2]


def test_nothing_done_has_no_eta_and_does_not_divide_by_zero(clock, capsys):
    with Display().bar("train") as bar:
        clock[0] += display_module.PLAIN_EVERY
        bar.update(0, 7)
        clock[0] = 100.0
        bar.update(7, 7)
    first, last = capsys.readouterr().out.splitlines()
    assert "nan s left" in first and last.startswith("train: 7/7")


def test_quiet_silences_progress_and_never_a_warning(clock, capsys):
    shown = Display(quiet=True)
    shown.say("unseen")
    with shown.bar("train") as bar:
        bar.update(1, 1)
    shown.warn("read [this]")
    out, err = capsys.readouterr()
    assert out == "" and err.strip() == "warning: read [this]"


def test_text_in_brackets_is_text_and_long_lines_stay_whole(capsys):
    shown = Display()
    long = "pip install 'ser-distill[train]' " + "x" * 300
    shown.say(long)
    assert capsys.readouterr().out == long + "\n"


def test_on_a_terminal_the_bar_moves(monkeypatch):
    screen = io.StringIO()
    shown = Display()
    shown.console = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(display_module.sys.stdout, "isatty", lambda: True, raising=False)
    with shown.bar("train") as bar:
        assert bar.progress is not None
        bar.update(3, 4)
        assert [(task.completed, task.total) for task in bar.progress.tasks] == [(3, 4)]
    assert "3/4" in screen.getvalue()


def test_a_table_shows_every_cell(capsys):
    Display().table("what", ["model", "steps"], [("student", 12), ("teacher", None)])
    text = capsys.readouterr().out
    assert all(word in text for word in ("what", "model", "steps", "student", "12", "teacher", "None"))
