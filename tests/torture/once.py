"""One round, as a test."""

import json
from pathlib import Path

from tests.torture.jobs import JOBS
from tests.torture.rounds import play, whole
from tests.torture.table import GOOD, Fault


def a_round(name: str, victim: str, phase: str, folder: Path, patience: float = 600.0) -> None:
    """Strike half way through a phase."""
    job, work = JOBS[name], folder / "torture"
    work.mkdir()
    reference = whole(job, work, patience)
    assert all(reference.counts.get(one, 0) > 0 for one in job.phases), reference.counts
    record = play(Fault(0, name, 0, victim, phase, 0.5), reference, work, patience)
    assert record.outcome in GOOD, json.dumps(record.detail)
    assert not list(work.glob(f"{name}-0-0*")), "nothing is kept of it"
    # a whole job is kept for the next call
    stamp = (work / f"{name}-whole/counts.json").stat().st_mtime_ns
    assert whole(job, work, patience).counts == reference.counts
    assert (work / f"{name}-whole/counts.json").stat().st_mtime_ns == stamp
