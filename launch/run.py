"""A whole recipe, stage by stage: pack, features, models in order of need with their targets, evaluate, report.

Every stage asks what is still missing, does that, and says what it did; what is there and still valid is skipped, so
a second call ends in seconds and a killed one goes on. Ray is started only when there is work for it.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import yaml

from cluster.here import Here
from launch.display import Display
from launch.search import combinations, dev_value, keep_choice
from ser import __version__, pin, produce
from ser.bill import bill as bill_of
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
from shards import manifest
from shards.errors import UserError
from shards.lock import hold
from shards.store import Store

STAGES = ("pack", "features", "train", "targets", "distill", "evaluate", "report")


@dataclass
class Line:
    """One row of the closing table."""

    stage: str
    made: int
    kept: int
    seconds: float
    note: str = ""


@dataclass
class Runner:
    """State of one `ser run`: the recipe, what is shown, and Ray once it is needed.

    `alone` does everything in this process, one thing after the other, without Ray. `but` names models that are left out.
    """

    recipe: Recipe
    display: Display
    alone: bool = False
    but: frozenset[str] = frozenset()
    lines: list[Line] = field(default_factory=list)
    stack: ExitStack = field(default_factory=ExitStack)
    _session: Any = None

    def session(self) -> Any:
        """The Ray session, started on first use; what stands in its place where nothing else takes part."""
        if self.alone:
            return Here()
        if self._session is None:
            from cluster.session import Session

            self.display.say(
                "starting Ray"
                if self.recipe.cluster.address is None
                else f"joining Ray at {self.recipe.cluster.address}"
            )
            self._session = self.stack.enter_context(
                Session(self.recipe.cluster.address, self.recipe.cluster.cpus)
            )
        return self._session

    def workers(self) -> int:
        """Trainings that run at once: what the cluster's declared resources allow."""
        self.session()
        import ray

        have, want = ray.cluster_resources(), self.recipe.cluster
        by_cpu = have.get("CPU", 1) / max(want.cpus_per_task, 1e-9)
        by_gpu = have.get("GPU", 0) / want.gpus_per_task if want.gpus_per_task else by_cpu
        return max(1, int(min(by_cpu, by_gpu)))

    def record(self, stage: str, made: int, kept: int, began: float, note: str = "") -> None:
        """Add a line to the closing table."""
        self.lines.append(Line(stage, made, kept, time.perf_counter() - began, note))


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
    runner = Runner(recipe, display, alone, but)
    last = STAGES.index(until)
    with runner.stack:
        if last > 0:
            other = "give this one a directory of its own (run_dir=FOLDER)"
            lock = hold(recipe.directory / ".lock", "another process works in this run directory", other)
            runner.stack.enter_context(lock)
        pack_stage(runner)
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

        runner.display.say("evaluating")
        page.unlink(missing_ok=True)
        evaluate(setting)
        mark.write_text(state)
        runner.record("evaluate", 1, 0, began)
    if with_page:
        from ser.report import write_report

        began = time.perf_counter()
        runner.record("report", 1, 0, began, str(write_report(setting)))
        runner.lines[-1].seconds = time.perf_counter() - began


def conditions_stage(runner: Runner, setting: Setting) -> None:
    """Let every finished model hear the test rows under the conditions that the report asks for."""
    from ser.conditions import answer_under, due

    began, work = time.perf_counter(), due(setting)
    if not work:
        return
    with runner.display.bar("conditions", unit="utt") as bar:
        for item in work:
            answer_under(setting, item, bar.update)
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


def pack_stage(runner: Runner) -> None:
    """Generate the corpora that are generated, then pack all that the dataset does not hold yet."""
    from shards.pack import pack

    recipe, began = runner.recipe, time.perf_counter()
    data = recipe.data
    asked = digest([corpus.model_dump(mode="json") for corpus in data.corpora] + [data.shard_seconds])
    store, mark = Store(data.path), ".recipe"
    if data.path.startswith("memory://"):
        raise UserError(
            "a dataset in memory is seen by one process, and a run has several",
            where=data.path,
            hint="set data.path to a folder, or to a URL such as s3://bucket/folder",
        )
    if store.exists(manifest.NAME) and store.exists(mark) and store.read(mark) == asked.encode():
        runner.record("pack", 0, 1, began)
        return
    for corpus in data.corpora:
        if corpus.generate is not None:
            from shards.corpora import spokenaffect

            with runner.display.bar(f"generate {corpus.reader}") as bar:
                spokenaffect.generate(corpus.root, progress=bar.update, **corpus.generate)
    utterances = (u for corpus in data.corpora for u in corpus.utterances())
    with runner.display.bar("pack") as bar:
        from cluster.pack import over

        dataset = pack(
            utterances, data.path, data.shard_seconds, run=lambda f, items: over(runner.session())(f, items),
            progress=lambda report, done, total: bar.update(done, total), max_quarantined=data.max_quarantined,
        )  # fmt: skip
    store.put(mark, asked.encode())
    hours = float(dataset.samples.sum()) / 16000 / 3600
    runner.record("pack", len(dataset.shards), 0, began, f"{len(dataset):,} utterances, {hours:.2f} h")


def feature_stage(runner: Runner, setting: Setting) -> None:
    """Compute what is missing of the stored features."""
    began = time.perf_counter()
    work = produce.feature_work(setting)
    if not work:
        runner.record("features", 0, len(setting.recipe.features), began)
        return
    bill = bill_of(setting, work)
    runner.display.say(f"features {', '.join(setting.recipe.features)}: {bill}")
    _compute(runner, setting, work, "features")
    runner.record("features", len(work), 0, began, f"{bill.hours:.2f} h of audio, {bill.bytes / 1e6:.0f} MB")


def _compute(runner: Runner, setting: Setting, work: list[produce.Work], title: str) -> None:
    from cluster.pool import compute_all

    total = sum(max(len(rows) for rows in item.rows.values()) for item in work)
    done, seconds, bad = 0, 0.0, {}
    with runner.display.bar(title, unit="utt") as bar:
        for item, result in compute_all(runner.session(), setting.recipe, work):
            done += max(len(rows) for rows in item.rows.values())
            seconds += result.seconds
            bad.update(dict(result.quarantined))
            bar.update(done, total)
    if bad:
        runner.display.warn(f"{len(bad)} utterances could not be read, for example {next(iter(bad.items()))}")


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
        heard = [name for name in names if recipe.models[name].layers]
        if heard and last >= STAGES.index("targets"):
            from launch.layers import layers_stage  # imports this module

            layers_stage(runner, setting, heard)
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
        with runner.display.bar(title, unit="trainings") as bar:
            progress = _Fraction(bar, len(due))
            if single and runner.alone:
                from ser.train import train

                for job in single:
                    train(recipe, job, report=partial(progress.steps, job))
                    progress.finished(job)
            elif single:
                from cluster.pool import train_all

                for trained in train_all(recipe, single, runner.workers(), progress.steps):
                    progress.finished(trained.job)
            for job in due:
                if job not in single:
                    from cluster.train import train_many

                    runner.session()
                    train_many(recipe, job)
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


def targets_stage(runner: Runner, setting: Setting, names: list[str]) -> None:
    """Store the targets of teachers over all folds; the bill is printed before it starts."""
    began = time.perf_counter()
    recipe = setting.recipe
    work: list[produce.Work] = []
    for name in names:
        seed = recipe.seeds_of(name)[0]
        for fold in setting.folds:
            whole = Job(fold, name, seed)
            copies = [Job(fold, name, seed, part=k) for k in range(recipe.models[name].cross_fit)]
            for job in [whole, *copies]:
                work += produce.teacher_work(setting, job)
    title = "targets " + ", ".join(names)
    if not work:
        runner.record(title, 0, len(names), began)
        return
    bill = bill_of(setting, work)
    runner.display.say(
        f"targets: {len(setting.folds)} folds x {len(names)} teachers x {len(setting.train_views)} views: {bill}"
    )
    _compute(runner, setting, work, title)
    runner.record(title, len(work), 0, began, str(bill))


def frames_stage(runner: Runner, setting: Setting, names: list[str]) -> None:
    """Store the frames of encoders over all folds; what they take on disk is printed before it starts."""
    from ser.frames import frame_work, refuse_full_disk

    began, recipe = time.perf_counter(), setting.recipe
    jobs_of = [Job(fold, name, recipe.seeds_of(name)[0]) for name in names for fold in setting.folds]
    work = [item for job in jobs_of for item in frame_work(setting, job)]
    title = "frames " + ", ".join(names)
    if not work:
        runner.record(title, 0, len(names), began)
        return
    bill = bill_of(setting, work)
    runner.display.say(f"frames of {', '.join(names)}, stored once for all that read them: {bill} on disk")
    refuse_full_disk(setting, bill.bytes)
    _compute(runner, setting, work, title)
    runner.record(title, len(work), 0, began, str(bill))


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
