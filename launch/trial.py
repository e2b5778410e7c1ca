"""One trial of a sweep, in a process of its own: the recipe's run in its own directory, then what it is judged by.

Guarantees: started again after a kill, it goes on where it was; on SIGTERM its training saves and it ends; test answers are not
scored, so nothing is chosen by them.
`ser run FOLDER/recipe.yaml` makes the rest of a trial's report.
"""

import json
import sys
from pathlib import Path
from typing import Any

from cluster.session import PATIENCE
from cluster.trials import Outcome
from launch.display import Display
from launch.run import run
from launch.study import TRIAL
from ser.recipe import Recipe
from ser.setting import open_setting
from ser.stopping import EXIT_CODE, Stopped, stopped_by_signals
from ser.strict import validate
from ser.sweep import QUALITY, Objective
from ser.tuned import judged, score_of_fold
from shards.errors import FullDisk, UserError
from shards.lock import hold


def main(folder: str) -> int:
    """Run the trial that lies in `folder`; its outcome is written there."""
    here = Path(folder)
    told = json.loads((here / TRIAL).read_text())
    # Its last process may be about to end.
    with hold(here / "trial.lock", "another process runs this trial", "stop it", PATIENCE):
        try:
            recipe = validate(Recipe, told["recipe"], where=str(here / TRIAL))
            objectives = [Objective.model_validate(one) for one in told["objectives"]]
            with stopped_by_signals():
                _run(recipe, here, told, objectives)
                values = judged(open_setting(recipe), objectives)
            Outcome(values=values).write(here)
        except FullDisk as error:  # no judgement of the trial: it goes on when there is room
            print(f"error: {error}", file=sys.stderr)
            return EXIT_CODE
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            Outcome(refused=f"{error.what} ({error.where})" if error.where else error.what).write(here)
            return 2
        except Stopped as stopped:
            print(stopped, file=sys.stderr)
            return EXIT_CODE
    return 0


def _run(recipe: Recipe, here: Path, told: dict[str, Any], objectives: list[Objective]) -> None:
    """All folds, or in a race one after the other, each one's score written down as it is known."""
    display, order = Display(), told["race"]
    for count in range(1, len(order)):
        part = recipe.model_copy(update={"folds": order[:count]})
        run(part, display, "distill", alone=told["alone"])
        _note(here, part, count - 1, objectives[0])
    run(recipe, display, "distill", alone=told["alone"])
    if order:
        _note(here, recipe.model_copy(update={"folds": order}), len(order) - 1, objectives[0])


def _note(here: Path, recipe: Recipe, number: int, objective: Objective) -> None:
    """Append the score of the `number`-th fold of a race."""
    assert objective.metric in QUALITY
    path, fold = here / "folds.jsonl", list(recipe.folds)[number]
    lines = path.read_bytes() if path.is_file() else b""
    whole = lines[: lines.rfind(b"\n") + 1]
    if any(json.loads(line)["fold"] == fold for line in whole.splitlines()):
        return
    value = score_of_fold(recipe.model_copy(update={"folds": [fold]}), objective)
    with path.open("r+b" if path.is_file() else "wb") as file:
        file.truncate(len(whole))
        file.seek(len(whole))
        file.write(json.dumps({"fold": fold, "value": value}).encode() + b"\n")
