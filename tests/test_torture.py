"""tests.torture: draws and records are kept to; two of its rounds, whole. `make torture` runs the rest."""

import json
from pathlib import Path

import pytest

from tests.torture.jobs import JOBS
from tests.torture.rounds import play, whole
from tests.torture.table import (
    AGAIN,
    BY_ITSELF,
    GOOD,
    NOT_MET,
    SKIPPED,
    Fault,
    Record,
    append,
    draw,
    markdown,
    read,
)


def test_every_victim_meets_every_phase_before_any_pair_comes_twice():
    for job in JOBS.values():
        pairs = len(job.victims) * len(job.phases)
        drawn = [draw(3, job, number) for number in range(2 * pairs)]
        assert drawn == [draw(3, job, number) for number in range(2 * pairs)]
        for turn in (drawn[:pairs], drawn[pairs:]):
            assert len({(fault.victim, fault.phase) for fault in turn}) == pairs
        assert drawn[:pairs] != [draw(4, job, number) for number in range(pairs)]
        assert all(0 <= fault.share < 1 for fault in drawn)


def test_records_are_appended_past_a_torn_line_and_counted(tmp_path):
    path = tmp_path / "records.jsonl"
    faults = [Fault(0, "pack", n, "driver", "write", 0.5) for n in range(5)]
    ends = [BY_ITSELF, AGAIN, NOT_MET, SKIPPED, "FAILED: two differ"]
    for fault, end in zip(faults[:2], ends):
        append(path, Record(fault, end))
    with path.open("a") as file:
        file.write('{"fault": {"se')  # as a kill leaves it
    for fault, end in zip(faults[2:], ends[2:]):
        append(path, Record(fault, end, "why not"))
    found = read(path)
    assert [r.outcome for r in found] == ends and [r.fault for r in found] == faults
    table = markdown(found)
    assert "| pack | write | 3 | driver 3 | 1 | 1 | 0 | 1 |" in table and "FAILED: two differ" in table
    assert "| all | | 3 | | 1 | 1 | 0 | 1 |" in table and "driver: why not" in table
    assert "1 drawn moments did not come" in table


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("job,victim,phase", [("pack", "worker", "write"), ("train", "driver", "checkpoint")])
def test_a_round(job, victim, phase, tmp_path):
    work = tmp_path / "torture"
    work.mkdir()
    reference = whole(JOBS[job], work, 900)
    assert all(reference.counts.get(name, 0) > 0 for name in JOBS[job].phases), reference.counts
    record = play(Fault(0, job, 0, victim, phase, 0.5), reference, work, 900)
    assert record.outcome in GOOD, json.dumps(record.detail)
    assert not [path for path in work.iterdir() if path.name.startswith(f"{job}-0-0")], (
        "nothing is kept of it"
    )
    # a whole job is kept for the next call
    stamp = (work / f"{job}-whole/counts.json").stat().st_mtime_ns
    assert whole(JOBS[job], work, 900).counts == reference.counts
    assert Path(work / f"{job}-whole/counts.json").stat().st_mtime_ns == stamp
