"""`python -m tests.torture --seed S --kills N`: N faults in each job, drawn by the seed; then the table.

Each fault is a line of `--records`; a call skips the draws that stand there, so it may be stopped and called again, and a
greater N goes on. The folder `--work` keeps undisturbed jobs and what failed.
"""

import argparse
import datetime
import sys
from pathlib import Path

from tests.conftest import ROOT
from tests.torture.jobs import JOBS
from tests.torture.rounds import play, whole
from tests.torture.table import GOOD, NOT_MET, SKIPPED, append, draw, markdown, read

RESULTS = ROOT / "tests/bench/results"


def main() -> int:
    """Run the draws that are left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--kills", type=int, default=25, help="of each job; moments that did not come are drawn anew"
    )
    parser.add_argument("--jobs", nargs="*", default=list(JOBS), choices=list(JOBS))
    parser.add_argument("--victims", nargs="*", help="these alone")
    parser.add_argument("--work", type=Path, default=Path("/tmp/ser-torture"))
    parser.add_argument("--records", type=Path, default=RESULTS / "torture.jsonl")
    parser.add_argument(
        "--patience", type=float, default=900.0, help="seconds until a command counts as hanging"
    )
    parser.add_argument("--table", action="store_true", help="only print the table")
    given = parser.parse_args()
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    for name in [] if given.table else given.jobs:
        job, number = JOBS[name], 0
        known = {r.fault: r for r in read(given.records)}
        kills = min(given.kills, job.rounds or given.kills)
        made, most = 0, 4 * kills + 40
        while made < kills and number < most:
            fault = draw(given.seed, job, number)
            record = known.get(fault)
            if given.victims and fault.victim not in given.victims:
                record = None
            elif record is None:
                record = play(fault, whole(job, work, given.patience), work, given.patience)
                append(given.records, record)
                print(
                    f"{name} {number}: {fault.victim} at {fault.phase}: {record.outcome} ({record.seconds} s)",
                    flush=True,
                )
            made += record is not None and record.outcome not in (NOT_MET, SKIPPED)
            number += 1
    records = read(given.records)
    table = markdown(records)
    print(f"\n{table}")
    if records:
        today = datetime.date.today().isoformat()
        head = f"# Faults, counted ({today})\n\n`python -m tests.torture --seed {given.seed}`; how each ends is in `{given.records.name}`.\n\n"
        given.records.with_name(f"torture-{today}.md").write_text(head + table + "\n")
    return int(any(r.outcome not in (*GOOD, NOT_MET, SKIPPED) for r in records))


if __name__ == "__main__":
    sys.exit(main())
