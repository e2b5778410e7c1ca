"""What was hit, when, and how it ended: records as lines of JSON, and their table in markdown."""

import json
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.torture.jobs import JOBS, Job

BY_ITSELF, AGAIN, IN_WORDS = "went on by itself", "the same command went on", "refused in words, then went on"
GOOD = (BY_ITSELF, AGAIN, IN_WORDS)
NOT_MET, SKIPPED = "not met", "skipped"


@dataclass(frozen=True)
class Fault:
    """The `number`-th draw of a seed for a job: `victim` at a share of all moments of `phase`."""

    seed: int
    job: str
    number: int
    victim: str
    phase: str
    share: float


@dataclass(frozen=True)
class Record:
    """A fault and its outcome: one of GOOD, NOT_MET (the moment or the victim did not come), SKIPPED, or what went wrong."""

    fault: Fault
    outcome: str
    detail: str = ""
    seconds: float = 0.0


def draw(seed: int, job: Job, number: int) -> Fault:
    """Every pair of victim and phase once before any twice, in an order of the seed's."""
    pairs = [(victim, phase) for victim in job.victims for phase in job.phases]
    turn, place = divmod(number, len(pairs))
    random.Random(f"{seed} {job.name} {turn}").shuffle(pairs)
    share = random.Random(f"{seed} {job.name} {number} share").random()
    return Fault(seed, job.name, number, *pairs[place], share)


def read(path: Path) -> list[Record]:
    """Records of earlier calls; a torn last line is left out."""
    found = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            values = json.loads(line)
        except ValueError:
            continue
        found.append(Record(**values | {"fault": Fault(**values["fault"])}))
    return found


def append(path: Path, record: Record) -> None:
    """Add one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torn = path.is_file() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
    with path.open("a") as file:
        file.write(("\n" if torn else "") + json.dumps(asdict(record)) + "\n")


def markdown(records: Iterable[Record]) -> str:
    """Kills by job and phase: how many, of whom, and how they ended."""
    records = list(records)
    met = [r for r in records if r.outcome not in (NOT_MET, SKIPPED)]
    lines = [
        "| job | phase | faults | of whom | by itself | same command | refused in words first | failed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for job in JOBS.values():
        for phase in job.phases:
            mine = [r for r in met if r.fault.job == job.name and r.fault.phase == phase]
            if mine:
                whom = Counter(r.fault.victim for r in mine)
                ends = [sum(r.outcome == good for r in mine) for good in GOOD]
                told = ", ".join(f"{name} {count}" for name, count in sorted(whom.items()))
                cells = [job.name, phase, len(mine), told, *ends, len(mine) - sum(ends)]
                lines.append("| " + " | ".join(map(str, cells)) + " |")
    ends = [sum(r.outcome == good for r in met) for good in GOOD]
    lines.append(f"| all | | {len(met)} | | {ends[0]} | {ends[1]} | {ends[2]} | {len(met) - sum(ends)} |")
    for r in met:
        if r.outcome not in GOOD:
            lines.append(f"\n{r.fault.job}, {r.fault.victim} at {r.fault.phase}: {r.outcome}")
    skipped = sorted({f"{r.fault.victim}: {r.detail}" for r in records if r.outcome == SKIPPED})
    lines += [f"\nSkipped: {why}" for why in skipped]
    missed = sum(r.outcome == NOT_MET for r in records)
    if missed:
        lines.append(
            f"\n{missed} drawn moments did not come (too late, or no such process then); not counted."
        )
    return "\n".join(lines)
