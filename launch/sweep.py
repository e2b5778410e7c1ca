"""`ser sweep RECIPE`: what all trials share is made once, then trials run until all that were asked for have ended.

Everything lies in `<run>/sweep`: `shared` (dataset's generation, features, models that the space does not touch, their targets),
`study.journal`, `trials/NUMBER`, `best.yaml`, `sweep.html`; with `per: fold` the last three are in `folds/FOLD`. The same command
goes on where it was killed.
"""

import importlib.util
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.best import write_best, write_chosen
from launch.display import Display
from launch.run import run
from launch.runner import session_of
from launch.study import Study
from ser.evaluate import plain
from ser.recipe import Recipe
from ser.setting import open_setting
from ser.space import sweep_of, told, touched
from ser.sweep import SweepConfig
from ser.tuned import declared
from shards.errors import UserError
from shards.lock import hold

ENTRY = "launch.trial:main"
# Slow to import; trials are forked from a process that has done so, but not where there are GPUs: a driver of theirs that was
# asked for its devices does not survive a fork.
PRELOAD = "launch.trial,ser.train,deepspeed,transformers"


def sweep(recipe: Recipe, display: Display) -> Path:
    """Run a recipe's sweep to its end.

    Returns:
        The folder with the page and the best recipe.

    Raises:
        UserError: Whatever the user can mend.
    """
    config = sweep_of(recipe)
    if importlib.util.find_spec("optuna") is None:
        raise UserError(
            "this needs Optuna, which is not installed",
            where="ser sweep",
            hint="pip install 'ser-distill[cluster]'",
        )
    folder = recipe.directory / "sweep"
    other = "give this one a directory of its own (run_dir=FOLDER)"
    with (
        hold(folder / ".lock", "another process drives this sweep", other),
        _Driving(recipe, display) as driving,
    ):
        studies = prepare(recipe, config, folder, display)
        found = {study.folds[0]: driving.drive(study, folder) for study in studies}
        if config.per == "fold":
            write_chosen(
                recipe, {study.folds[0]: (study, found[study.folds[0]]) for study in studies}, folder
            )
            display.say(f"{folder / 'best.yaml'}: every fold's own choice")
    return folder


def prepare(recipe: Recipe, config: SweepConfig, folder: Path, display: Display) -> list[Study]:
    """Make what the trials share: the dataset, features, and all models that no value of the space changes.

    Returns:
        The studies to drive, one or one a fold.
    """
    base = recipe.model_copy(
        update={"sweep": None, "run_dir": str(folder / "shared")}
        | ({} if config.folds == "all" else {"folds": config.folds})
    )
    run(base, display, until="distill", but=touched(recipe))
    setting = open_setting(base)
    folds = tuple(setting.folds)
    parts = [(fold,) for fold in folds] if config.per == "fold" else [folds]
    studies = []
    for part in parts:
        # Whoever is tested in any fold counts, whichever folds the trials run; a choice for one fold is judged by that fold.
        tested = list(part) if config.per == "fold" else recipe.folds
        tuning = declared(open_setting(base.model_copy(update={"folds": tested})), config, part)
        trial = base.model_copy(
            update={
                "folds": list(part),
                "reuse": [*recipe.reuse, str(folder / "shared")],
                "tuned_on": tuning,
                "allow_non_nested": recipe.allow_non_nested or tuning.selection == "non-nested",
                "cluster": recipe.cluster.model_copy(
                    update={"address": None, "cpus": max(1, int(config.resources.cpus))}
                ),
            }
        )
        of_fold = config.per == "fold"
        studies.append(
            Study(
                f"{recipe.name} {part[0]}" if of_fold else recipe.name,
                folder / "folds" / part[0] if of_fold else folder,
                config, trial, folder / "shared", part, setting.dataset.content_hash,
            )
        )  # fmt: skip
        if tuning.selection == "non-nested" and not of_fold:
            display.say(
                f"settings chosen here are non-nested: dev speakers of {len(folds)} folds are tested in others, and every row "
                "will say so; sweep.per=fold chooses inside each fold instead"
            )
    return studies


@dataclass
class _Driving:
    """Drives studies one after the other; Ray is started when the first has something to do."""

    recipe: Recipe
    display: Display
    stack: ExitStack = field(default_factory=ExitStack)
    session: Any = None

    def __enter__(self) -> "_Driving":
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def drive(self, study: Study, storage: Path) -> dict[str, Any]:
        """Run a study's trials to the end, write its page and best recipes, and tell what it has come to."""
        from cluster.study import open_study
        from cluster.sweep import Sweep, drive

        config, most = study.config, study.most()
        found = open_study(config, study.name, storage, study.made_for(), most)
        work = Sweep(
            found, config, study.folder / "trials", study.write_trial, ENTRY,
            preload="" if config.resources.gpus else PRELOAD, so_far=study.so_far, most=most, say=self.display.say,
        )  # fmt: skip
        try:
            if sum(t.state.is_finished() for t in found.get_trials(deepcopy=False)) < work.total:
                self.session = self.session or self.stack.enter_context(
                    session_of(self.recipe, self.display.say)
                )
                with self.display.bar(f"sweep {study.name}", unit="trials") as bar:
                    work.show = bar.update
                    drive(work, self.session)
        finally:
            told_so_far = self._write(study, found)
        if not told_so_far["best"]:
            where = str(study.folder / "trials")
            raise UserError(
                "no trial was completed", where=where, hint="look at log.txt in the trials' folders"
            )
        return told_so_far

    def _write(self, study: Study, found: Any) -> dict[str, Any]:
        from cluster.told import tell
        from ser.report.sweep import write_page

        assert study.recipe.tuned_on is not None
        result = plain(tell(found, study.config) | {"tuning": study.recipe.tuned_on.model_dump()})
        self.display.say(f"page: {write_page(result, study.folder)}")
        for old in study.folder.glob("best*.yaml"):
            old.unlink()
        for number in result["best"]:
            path = write_best(self.recipe, study, result, number)
            self.display.say(f"{path}: trial {number}, {told(result['trials'][number]['params'])}")
        return result
