"""tests.torture: draws and records are kept to; a round of it, whole. Longer ones are in the cluster suite, the rest in `make torture`."""

import pytest

from tests.torture.jobs import JOBS
from tests.torture.once import a_round
from tests.torture.rounds import Whole, play
from tests.torture.table import (
    AGAIN,
    BY_ITSELF,
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


def test_where_there_is_no_slurm_its_machines_are_skipped_and_the_record_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.torture.on_slurm.missing", lambda: ["slurmd"])
    record = play(draw(0, JOBS["slurm"], 0), Whole(tmp_path, {}, {}), tmp_path, 1.0)
    assert record.outcome == SKIPPED and record.detail.startswith("no slurmd (apt-get install")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_round_of_pack(tmp_path):
    a_round("pack", "worker", "write", tmp_path)
