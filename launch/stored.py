"""The stages of `ser run` that store something beside the shards: features, targets, encoders' frames, hidden states.

Each asks what is still due, prints what that costs, and computes it over the cluster.
"""

import time
from collections.abc import Sequence

import numpy as np

from launch.runner import Runner
from launch.tally import Tally
from ser import produce
from ser.bill import Bill
from ser.bill import bill as bill_of
from ser.frames import frame_work, refuse_full_disk
from ser.job import Job
from ser.layers import layer_work
from ser.setting import Setting
from shards.utterance import SAMPLE_RATE


def feature_stage(runner: Runner, setting: Setting) -> None:
    """Compute what is missing of the stored features."""
    names = list(setting.recipe.features)
    _store(runner, setting, produce.feature_work(setting), names, "features", f"features {', '.join(names)}")


def targets_stage(runner: Runner, setting: Setting, names: Sequence[str]) -> None:
    """Store the targets of teachers over all folds, those of cross-fitted copies too."""
    recipe, work = setting.recipe, []
    for whole in _jobs(setting, names):
        copies = [
            Job(whole.fold, whole.model, whole.seed, part=k)
            for k in range(recipe.models[whole.model].cross_fit)
        ]
        for job in [whole, *copies]:
            work += produce.teacher_work(setting, job)
    told = f"targets: {len(setting.folds)} folds x {len(names)} teachers x {len(setting.train_views)} views"
    _store(runner, setting, work, names, f"targets {', '.join(names)}", told)


def frames_stage(runner: Runner, setting: Setting, names: Sequence[str]) -> None:
    """Store the frames of encoders over all folds; more than the disk has is refused."""
    work = [item for job in _jobs(setting, names) for item in frame_work(setting, job)]
    title = f"frames {', '.join(names)}"
    _store(runner, setting, work, names, title, f"{title}, stored once for all that read them")


def layers_stage(runner: Runner, setting: Setting, names: Sequence[str]) -> None:
    """Store the mean of every hidden state of encoders over all folds, for probes."""
    work = [item for job in _jobs(setting, names) for item in layer_work(setting, job)]
    title = f"layers {', '.join(names)}"
    _store(runner, setting, work, names, title, f"{title}: every hidden state's mean, once for all probes")


def _jobs(setting: Setting, names: Sequence[str]) -> list[Job]:
    return [Job(fold, name, setting.recipe.seeds_of(name)[0]) for name in names for fold in setting.folds]


def _store(
    runner: Runner, setting: Setting, work: list[produce.Work], names: Sequence[str], title: str, told: str
) -> None:
    """Compute `work` over the cluster; the bill stands before it and in the closing table."""
    began = time.perf_counter()
    if not work:
        runner.record(title, 0, len(names), began)
        return
    bill: Bill = bill_of(setting, work)
    runner.display.say(f"{told}: {bill} on disk")
    refuse_full_disk(setting, bill.bytes)
    from cluster.pool import compute_all

    total = sum(len(_rows(item)) for item in work)
    done, bad, session, tally = 0, {}, runner.session(), Tally()
    with runner.display.bar(title, unit="utt") as bar:
        for item, result in compute_all(session, setting.recipe, work):
            rows = _rows(item)
            tally.add(session.node, len(rows), float(setting.dataset.samples[rows].sum()) / SAMPLE_RATE)
            done += len(rows)
            bad.update(dict(result.quarantined))
            bar.update(done, total, tally.pace())
    tally.show(runner.display, title)
    if bad:
        runner.display.warn(f"{len(bad)} utterances could not be read, for example {next(iter(bad.items()))}")
    runner.record(title, len(work), 0, began, str(bill))


def _rows(work: produce.Work) -> np.ndarray:
    """The rows that a unit reads: those of the store that lacks most."""
    return max(work.rows.values(), key=len)
