"""A whole recipe in this process: what `ser run` does, without Ray, for tests of recipes."""

import json
from typing import Any

from launch.run import levels, write_run
from ser import produce
from ser.evaluate import evaluate
from ser.job import Job, jobs
from ser.layers import layer_work
from ser.recipe import Recipe
from ser.report import write_report
from ser.setting import open_setting
from ser.train import train
from shards.corpora import spokenaffect
from shards.pack import pack


def run_here(recipe: Recipe) -> dict[str, Any]:
    """Generate, pack, train, store targets, evaluate and report; returns report.json."""
    for corpus in recipe.data.corpora:
        if corpus.generate is not None:
            spokenaffect.generate(corpus.root, **corpus.generate)
    utterances = (u for corpus in recipe.data.corpora for u in corpus.utterances())
    pack(utterances, recipe.data.path, recipe.data.shard_seconds)
    write_run(recipe)
    setting = open_setting(recipe)
    list(produce.serial(recipe, produce.feature_work(setting)))
    read = {source for model in recipe.models.values() for source in model.target_sources}
    for wave in levels(recipe):
        for name in wave:
            for fold in setting.folds:
                for job in jobs(recipe, fold, name):
                    train(recipe, job)
                teacher = Job(fold, name, recipe.seeds_of(name)[0])
                if recipe.models[name].layers:
                    list(produce.serial(recipe, layer_work(setting, teacher)))
                if name in read:
                    list(produce.serial(recipe, produce.teacher_work(setting, teacher)))
    evaluate(setting)
    write_report(setting)
    return json.loads((recipe.directory / "report.json").read_text())
