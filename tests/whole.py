"""A whole recipe in this process, stage by stage as `ser run` does it, without Ray's start-up and its workers."""

from types import SimpleNamespace

from launch.run import levels, results_stage, write_run
from ser import pin, produce
from ser.job import Job, jobs
from ser.recipe import Recipe
from ser.setting import open_setting
from ser.train import train
from shards import corpora
from shards.corpora import spokenaffect
from shards.pack import pack


def run_here(recipe: Recipe) -> None:
    """Pack, features, models in order of need with their targets, evaluation and report."""
    for corpus in recipe.data.corpora:
        if corpus.generate is not None:
            spokenaffect.generate(corpus.root, **corpus.generate)
    pack(
        (u for c in recipe.data.corpora for u in corpora.read(c.reader, c.root, **c.options)),
        recipe.data.path,
        recipe.data.shard_seconds,
    )
    write_run(recipe)
    pin.settle(recipe)
    pin.register(recipe)
    setting = open_setting(recipe)
    list(produce.serial(recipe, produce.feature_work(setting)))
    read = {name for model in recipe.models.values() for name in model.target_sources}
    for wave in levels(recipe):
        for name in wave:
            for fold in setting.folds:
                for job in jobs(recipe, fold, name):
                    train(recipe, job)
        for name in read & set(wave):
            for fold in setting.folds:
                job = Job(fold, name, recipe.seeds_of(name)[0])
                list(produce.serial(recipe, produce.teacher_work(setting, job)))
    lines: list = []
    runner = SimpleNamespace(
        recipe=recipe, display=SimpleNamespace(say=print), lines=lines, record=lambda *a, **k: lines.append(SimpleNamespace())
    )  # fmt: skip
    results_stage(runner, setting, with_page=True)
