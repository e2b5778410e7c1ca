"""Shared fixtures. Real corpora: $SER_CORPORA, else ../shared/corpora beside the checkout; skipped where there are none."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no fault of the code under test.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch

# In the background of a script it is ignored, and whoever is to be interrupted would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent


def corpora_root() -> Path | None:
    """Folder of the open corpora, or None."""
    named = os.environ.get("SER_CORPORA")
    path = Path(named) if named else ROOT.parent / "shared" / "corpora"
    return path if path.is_dir() else None


def pytest_report_header(config) -> str:
    root = corpora_root()
    return (
        f"real corpora: {root}" if root else "real corpora: none (set SER_CORPORA; their tests are skipped)"
    )


def pytest_terminal_summary(terminalreporter) -> None:
    """Figures of tests that passed (`record_property("figure", ...)`), on however many processes: pytest swallows what they print."""
    passed = terminalreporter.stats.get("passed", ())
    for line in (text for report in passed for name, text in report.user_properties if name == "figure"):
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def corpora() -> Path:
    root = corpora_root()
    if root is None:
        pytest.skip("no real corpora: set SER_CORPORA to a folder with emodb/, ravdess/, ...")
    return root


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory) -> str:
    """The tiny dataset of `tests.tiny`, packed once; targets may be added to it, nothing may be changed."""
    from tests import tiny

    return tiny.make_dataset(tmp_path_factory.mktemp("tiny"))
