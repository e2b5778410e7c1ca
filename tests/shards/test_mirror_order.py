"""What is copied to a store, in which order: every prefix of a copy is a state that a run can go on from."""

import os
import random
import shutil
from pathlib import Path

import pytest

from shards.mirror import kind, plan, scan, stamp_of


class Run:
    """Does to a folder what trainings do, with contents that tell whose they are."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.dice, self.clock = folder, random.Random(seed), 0
        self.identity = {"a": 0, "b": 0}

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        self.clock += 1
        os.utime(path, ns=(self.clock, self.clock))

    def act(self) -> None:
        """One thing that happens in a run."""
        job = self.dice.choice("ab")
        at, who = f"folds/f/{job}/seed-0", self.identity[job]
        here = self.folder / at
        what = self.dice.choice(("save", "save", "finish", "claim", "log", "report"))
        if what == "report":
            (self.folder / ".results").unlink(missing_ok=True)
            self.write("report.json", f"report {self.clock}")
            self.write(".results", f"state {self.clock}")
        elif what == "log":
            self.write(f"{at}/events.jsonl", f"{who} " * self.clock)
        elif what == "claim":  # another recipe, or an older one again
            wanted = self.dice.randrange(3)
            if wanted == who:
                return
            if (here / "DONE").is_file():
                aside = self.folder / f"superseded/f/{job}/seed-0-{who}"
                aside.parent.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(aside, ignore_errors=True)
                here.rename(aside)
            shutil.rmtree(here, ignore_errors=True)
            kept = self.folder / f"superseded/f/{job}/seed-0-{wanted}"
            if kept.is_dir():
                here.parent.mkdir(parents=True, exist_ok=True)
                kept.rename(here)
            self.identity[job] = wanted
            self.write(f"{at}/job.json", f"{wanted}")
        elif not (here / "DONE").is_file():
            self.write(f"{at}/job.json", f"{who}")
            steps = sorted(int(p.name[5:]) for p in here.glob("checkpoints/step-*"))
            if what == "save":
                step = steps[-1] + 1 if steps else 1
                self.write(f"{at}/checkpoints/step-{step}/weights", f"{who} step {step}")
                self.write(f"{at}/checkpoints/step-{step}/COMMIT", f"{who} step {step}")
                for old in steps[:-1]:
                    shutil.rmtree(here / f"checkpoints/step-{old}")
            else:
                self.write(f"{at}/model/weights", f"{who}")
                self.write(f"{at}/DONE", f"done by {who}")


def promises(files: dict[str, str]) -> set[tuple[str, str]]:
    """Checks a state of the store; returns (model, identity) of the finished trainings in it, set aside or not."""
    done = set()
    for name, text in files.items():
        folder, _, base = name.rpartition("/")
        if base == "COMMIT":
            training = folder.rpartition("/checkpoints/")[0]
            whose = files.get(f"{training}/job.json")
            if whose is not None:  # else nobody reads it
                assert files[f"{folder}/weights"] == text and text.startswith(f"{whose} "), name
        if base == "DONE" and (whose := files.get(f"{folder}/job.json")) is not None:
            assert text == f"done by {whose}" and files[f"{folder}/model/weights"] == whose, name
            done.add((folder.split("/")[2], whose))
        if base == ".results":
            # written right after its report
            assert int(text.split()[1]) == int(files["report.json"].split()[1]) + 1
    return done


def furthest(files: dict[str, str]) -> dict[tuple[str, str], int]:
    """(training, identity) -> its newest checkpoint that a run would go on from."""
    out: dict[tuple[str, str], int] = {}
    for name, text in files.items():
        if name.endswith("/COMMIT"):
            training = name.partition("/checkpoints/")[0]
            if training + "/job.json" in files:
                key = training, files[training + "/job.json"]
                out[key] = max(out.get(key, 0), int(text.split()[-1]))
    return out


@pytest.mark.parametrize("seed", range(12))
def test_every_prefix_of_a_copy_is_a_state_to_go_on_from(tmp_path, seed):
    """Random lives of a run, copied now and then; each copy is broken off at a drawn step and looked at after each."""
    run, dice = Run(tmp_path, seed), random.Random(seed)
    store: dict[str, str] = {}
    record: dict = {}
    for _ in range(40):
        for _ in range(dice.randrange(1, 6)):
            run.act()
        local = scan(tmp_path)
        text = {name: (tmp_path / name).read_text() for name in local}
        before = promises(store)
        kept = before & (promises(text))
        was, now = furthest(store), furthest(text)
        known = {n: stamp_of(words.encode()) if kind(n) else record.get(n) for n, words in store.items()}
        steps = [(i, what, name) for i, (what, names) in enumerate(plan(local, known))
                 for name in dice.sample(names, len(names))]  # fmt: skip
        stop = dice.randrange(len(steps) + 1) if dice.random() < 0.4 else len(steps)
        for i, what, name in steps[:stop]:
            if what == "put":
                store[name] = text[name]
                # a step that was broken off was not written down
                record[name] = None if stop < len(steps) and i == steps[stop][0] else local[name]
            else:
                store.pop(name)
            assert kept <= promises(store), "what was finished stays"
            for key, step in was.items():
                if key in now:
                    assert furthest(store).get(key, 0) >= min(step, now[key]), (
                        "and so does what was committed"
                    )
        if stop == len(steps):
            assert store == text
