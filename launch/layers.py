"""The stage of `ser run` that stores the hidden states of encoders, for probes."""

import time

from launch.run import Runner
from launch.run import _compute as compute
from ser.bill import bill as bill_of
from ser.job import Job
from ser.layers import layer_work
from ser.setting import Setting


def layers_stage(runner: Runner, setting: Setting, names: list[str]) -> None:
    """Store the hidden states of encoders over all folds; the bill is printed before it starts."""
    began, recipe = time.perf_counter(), setting.recipe
    jobs = [Job(fold, name, recipe.seeds_of(name)[0]) for name in names for fold in setting.folds]
    work = [item for job in jobs for item in layer_work(setting, job)]
    title = "layers of " + ", ".join(names)
    if not work:
        runner.record(title, 0, len(names), began)
        return
    bill = bill_of(setting, work)
    runner.display.say(f"{title}: the mean of every hidden state, stored once for all probes: {bill} on disk")
    compute(runner, setting, work, title)
    runner.record(title, len(work), 0, began, str(bill))
