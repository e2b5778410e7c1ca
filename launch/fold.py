"""One fold of a run by itself, beside processes that do its other folds: what an array of jobs is made of.

Guarantees: folds share the dataset, its features and the run directory, and no file of two folds is the same; the trainings
are those of a whole run. `ser run RECIPE --until features` comes first, `ser run RECIPE` at the end adds the report.
"""

from launch.display import Display
from ser import pin
from ser.recipe import Recipe, refuse_remote
from shards.errors import UserError
from shards.lock import hold


def run_fold(recipe: Recipe, fold: str, display: Display) -> list:
    """Train a fold's models and store its targets; returns lines for the closing table.

    Raises:
        UserError: The run is not prepared, there is no such fold, or another process does it.
    """
    refuse_remote(recipe, "single folds share a run directory")
    from launch.run import Runner, feature_stage, model_stages
    from ser.setting import open_setting

    if pin.read(recipe) is None:
        raise UserError(
            "this run is not prepared for single folds",
            where=str(recipe.directory),
            hint="first pack and make the features: ser run RECIPE --until features",
        )
    alone = recipe.model_copy(update={"folds": [fold]})
    runner = Runner(alone, display)
    with runner.stack:
        busy = "another process does this fold"
        runner.stack.enter_context(hold(recipe.directory / f".lock-{fold}", busy, "choose another fold"))
        setting = open_setting(alone)
        feature_stage(runner, setting)
        model_stages(runner, setting, STUDENTS, None)
    return runner.lines


STUDENTS = 4  # the place of "distill" among the stages


def names(recipe: Recipe) -> tuple[str, ...]:
    """Names of a recipe's folds.

    Raises:
        UserError: They are not known before the dataset is packed.
    """
    if recipe.folds != "all":
        return tuple(recipe.folds)
    from ser.setting import open_setting
    from shards import manifest
    from shards.store import Store

    if not Store(recipe.data.path).exists(manifest.NAME):
        raise UserError(
            "which folds there are is known once the dataset is packed",
            where="--folds",
            hint="ser pack RECIPE first; or name them, folds='[NAME, ...]'",
        )
    return tuple(open_setting(recipe).folds)
