"""A whole recipe, stage by stage: pack, features, models in order of need with their targets, evaluate, report.

Every stage asks what is still missing, does that, and says what it did; what is there and still valid is skipped, so
a second call ends in seconds and a killed one goes on. Ray is started only when there is work for it.
"""

import json
import time
from _thread import interrupt_main
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import yaml

from launch.display import Display
from launch.packing import pack_stage
from launch.runner import Line, Runner
from launch.search import combinations, dev_value, keep_choice
from launch.stored import feature_stage, frames_stage, layers_stage, targets_stage
from ser import __version__, hubs, pin, trackers
from ser.checkpoint import write_json
from ser.job import (
    Job,
    digest,
    finished,
    identity,
    jobs,
    train_config,
    why_superseded,
)
from ser.recipe import Recipe
from ser.reuse import adopt
from ser.setting import Setting, open_setting
from shards import transcripts
from shards.dataset import Dataset
from shards.errors import UserError
from shards.lock import hold
from shards.mirror import mirrored

STAGES = ("pack", "features", "train", "targets", "distill", "evaluate", "report")


def run(
    recipe: Recipe,
    display: Display,
    until: str = "report",
    only: str | None = None,
    *,
    alone: bool = False,
    but: frozenset[str] = frozenset(),
) -> list[Line]:
    """Make whatever is missing, up to a stage.

    Args:
        recipe: The resolved recipe.
        display: Where progress goes.
        until: Last stage: "pack", "features", "train" (teachers), "targets", "distill" (students), "evaluate",
            "report".
        only: Train this model alone (with what it needs).
        alone: In this process, without Ray; for recipes whose trainings take one worker each.
        but: Models that are not trained; what they read of others is made.

    Returns:
        What was made and kept, a line a stage.

    Raises:
        UserError: Whatever the user can mend.
    """
    if until not in STAGES:
        raise UserError(f"no stage {until!r}", hint=f"stages: {', '.join(STAGES)}")
    if only is not None:
        _needed(recipe, only)  # refused before anything is made
    hubs.check(recipe)
    trackers.check(recipe)
    runner = Runner(recipe, display, alone, but)
    last = STAGES.index(until)
    with runner.stack:
        if last > 0 and recipe.is_remote:
            runner.mirror = runner.stack.enter_context(
                mirrored(recipe.address, recipe.directory, display.say, display.warn, interrupt_main)
            )
        if last > 0:
            other = "give this one a directory of its own (run_dir=FOLDER)"
            lock = hold(recipe.directory / ".lock", "another process works in this run directory", other)
            runner.stack.enter_context(lock)
        pack_stage(runner)
        transcripts_stage(runner)
        if last == 0:
            return runner.lines
        write_run(recipe)
        moved = pin.settle(recipe)
        if moved:
            display.say(moved)
        pin.register(recipe)
        setting = open_setting(recipe)
        feature_stage(runner, setting)
        if last >= 2:
            model_stages(runner, setting, last, only)
        if last >= 5:
            results_stage(runner, setting, with_page=last >= 6)
    return runner.lines


def results_stage(runner: Runner, setting: Setting, with_page: bool) -> None:
    """Scores and, if asked for, the page; both are kept while every training below them is the same."""
    began, recipe = time.perf_counter(), setting.recipe
    every = [job for name in recipe.models for fold in setting.folds for job in jobs(recipe, fold, name)]
    state = digest(
        [
            __version__,
            recipe.report.model_dump(mode="json"),
            recipe.tuned_on and recipe.tuned_on.model_dump(mode="json"),
            recipe.allow_non_nested,
            [identity(setting, job) for job in every],
        ]
    )
    mark, page = recipe.directory / ".results", recipe.directory / "report.html"
    same = mark.is_file() and mark.read_text() == state and (recipe.directory / "report.json").is_file()
    if same and (page.is_file() or not with_page):
        runner.record("report" if with_page else "evaluate", 0, 1, began, str(page) if with_page else "")
        return
    conditions_stage(runner, setting)
    if not same:
        from ser.evaluate import evaluate

        page.unlink(missing_ok=True)
        with runner.display.bar("evaluate", unit="models and comparisons") as bar:
            evaluate(setting, bar.update)
        mark.write_text(state)
        runner.record("evaluate", 1, 0, began)
    if with_page:
        from ser.report import write_report

        began = time.perf_counter()
        with runner.display.bar("report", unit="parts") as bar:
            written = write_report(setting, bar.update)
        runner.record("report", 1, 0, began, str(written))
        runner.lines[-1].seconds = time.perf_counter() - began


def conditions_stage(runner: Runner, setting: Setting) -> None:
    """Let every finished model hear the test rows under the conditions that the report asks for."""
    from ser.conditions import answer, due

    began, recipe, work = time.perf_counter(), setting.recipe, due(setting)
    if not work:
        return
    total, done = sum(len(setting.folds[item.fold].test) for item in work), 0
    with runner.display.bar("conditions", unit="utt") as bar:
        for _, heard in runner.session().map(
            partial(answer, recipe), work, num_cpus=recipe.cluster.cpus_per_task, num_gpus=recipe.cluster.gpus_per_task
        ):  # fmt: skip
            bar.update(done := done + heard, total)
    runner.record("conditions", len(work), 0, began, ", ".join(dict.fromkeys(item.name for item in work)))


def write_run(recipe: Recipe) -> None:
    """The run directory with its resolved recipe and the environment it runs in."""
    recipe.directory.mkdir(parents=True, exist_ok=True)
    path = recipe.directory / "recipe.yaml"
    text = yaml.safe_dump(recipe.dump(), sort_keys=False)
    if not path.is_file() or path.read_text() != text:
        temporary = path.with_suffix(".tmp")
        temporary.write_text(text)
        temporary.replace(path)
    environment = recipe.directory / "environment.json"
    if not environment.is_file():
        from ser.environment import describe

        write_json(environment, describe())


def transcripts_stage(runner: Runner) -> None:
    """Put the transcripts that the recipe's corpora name beside the dataset, all tables of one recogniser together."""
    given = [corpus.transcripts for corpus in runner.recipe.data.corpora if corpus.transcripts is not None]
    for source in dict.fromkeys(one.source for one in given):
        began, dataset = time.perf_counter(), Dataset.open(runner.recipe.data.path)
        if lacking := transcripts.due(dataset, source):
            transcripts.adopt(dataset, source, [one.path for one in given if one.source == source])
            runner.record(f"transcripts {source}", len(lacking), 0, began)


def levels(recipe: Recipe) -> Iterator[list[str]]:
    """Models in waves: each wave needs only those before it."""
    done: list[str] = []
    while len(done) < len(recipe.models):
        wave = [
            n for n, m in recipe.models.items() if n not in done and all(need in done for need in m.needs)
        ]
        done += wave
        yield wave


def model_stages(runner: Runner, setting: Setting, last: int, only: str | None) -> None:
    """Train the models wave by wave, each wave's teachers followed by their targets."""
    recipe = setting.recipe
    wanted = _needed(recipe, only) if only else set(recipe.models)
    read = {name for model in wanted for name in recipe.models[model].target_sources}
    for wave in levels(recipe):
        names = [name for name in wave if name in wanted - runner.but]
        if last < STAGES.index("distill"):
            names = [name for name in names if recipe.models[name].role in ("teacher", "encoder")]
        if not names:
            continue
        search_stage(runner, setting, names)
        train_stage(runner, setting, names)
        probed = [name for name in names if recipe.models[name].layers]
        if probed and last >= STAGES.index("targets"):
            layers_stage(runner, setting, probed)
        heard = {encoder for model in wanted for encoder in recipe.models[model].encoders}
        encoders = [name for name in names if name in heard]
        if encoders:
            frames_stage(runner, setting, encoders)
        teachers = [name for name in names if name in read]
        if teachers and recipe.targets.source == "online":
            mode = ", in training mode (LEGACY)" if recipe.targets.mode == "train" else ""
            runner.display.say(
                f"targets of {', '.join(teachers)}: asked online, at every step of the students{mode}"
            )
        elif teachers and last >= STAGES.index("targets"):
            targets_stage(runner, setting, teachers)


def _needed(recipe: Recipe, model: str) -> set[str]:
    if model not in recipe.models:
        raise UserError(f"no model {model!r}", where=recipe.name, hint=f"models: {', '.join(recipe.models)}")
    found = {model}
    for name in recipe.models[model].needs:
        found |= _needed(recipe, name)
    return found


def train_stage(runner: Runner, setting: Setting, names: list[str]) -> None:
    """Train models over all folds and seeds."""
    every = [job for name in names for fold in setting.folds for job in jobs(setting.recipe, fold, name)]
    _train(runner, setting, every, "train " + ", ".join(names))


def _train(runner: Runner, setting: Setting, every: list[Job], title: str) -> None:
    began = time.perf_counter()
    recipe = setting.recipe
    due = [job for job in every if not finished(setting, job) and not adopt(setting, job, recipe.reuse)]
    kept = len(every) - len(due)
    for job in set(every) - set(due):
        if train_config(recipe, job).workers > 1:
            from cluster.train import forget

            forget(recipe, job)
    aside = [why for job in due if (why := why_superseded(setting, job))]
    note = ""
    if aside:
        fields = sorted({name for why in aside for name in why})
        note = f"{len(aside)} set aside in superseded/: {', '.join(fields[:4])}{', ...' if len(fields) > 4 else ''}"
        runner.display.say(
            f"{title}: {len(aside)} finished {'trainings were' if len(aside) > 1 else 'training was'} made otherwise "
            f"(different: {', '.join(fields)}); kept in {recipe.directory / 'superseded'}"
        )
    if due:
        single = [job for job in due if train_config(recipe, job).workers == 1]
        if runner.alone and len(single) < len(due):
            raise UserError(
                "this training takes several workers, and this process is alone",
                where=title,
                hint="train.workers=1",
            )
        with runner.display.bar(title, unit="trainings") as bar:
            progress = _Fraction(bar, len(due))
            if single and runner.alone:
                from ser.train import train

                for job in single:
                    train(recipe, job, report=partial(progress.steps, job))
                    progress.finished(job)
            elif single:
                from cluster.pool import train_all

                most, session = runner.workers(), runner.session()
                for trained in train_all(
                    recipe, single, most, progress.steps, session.home, runner.display.say
                ):
                    progress.finished(trained.job)
            if several := [job for job in due if job not in single]:
                from cluster.groups import train_groups

                for job in train_groups(runner.session(), recipe, several, progress.steps):
                    progress.finished(job)
    runner.record(title, len(due), kept, began, note)


class _Fraction:
    """Progress over trainings: finished ones count whole, running ones by their steps."""

    def __init__(self, bar: Any, total: int):
        self.bar, self.total, self.done, self.parts = bar, total, 0, {}

    def steps(self, job: Job, done: int, total: int) -> None:
        """A training has done `done` of `total` steps."""
        self.parts[job] = done / total
        self.bar.update(self.done + sum(self.parts.values()), self.total)

    def finished(self, job: Job) -> None:
        """A training is over."""
        self.parts.pop(job, None)
        self.done += 1
        self.bar.update(self.done + sum(self.parts.values()), self.total)


def search_stage(runner: Runner, setting: Setting, names: list[str]) -> None:
    """Try each model's `search` grid on every fold's dev set with the first seed; keep the best per fold."""
    recipe = setting.recipe
    for name in names:
        grid = recipe.models[name].search
        if not grid:
            continue
        trials = {
            fold: [Job(fold, name, recipe.seeds[0], trial=t) for t in combinations(grid)]
            for fold in setting.folds
        }
        _train(runner, setting, [job for fold in trials.values() for job in fold], f"search {name}")
        for fold, tried in trials.items():
            scores = {job: dev_value(recipe, job) for job in tried}
            best = max(tried, key=lambda job: scores[job])
            keep_choice(recipe, fold, name, json.loads(best.trial or "{}"))


def table(lines: list[Line]) -> list[tuple[str, ...]]:
    """The closing table as text cells."""
    return [(x.stage, str(x.made), str(x.kept), f"{x.seconds:.1f}", x.note) for x in lines]


Say = Callable[[str], None]
__all__ = ["Line", "Runner", "identity", "run", "table"]
