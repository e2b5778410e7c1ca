"""The first stage of a recipe: its corpora are generated where they are made, and what the dataset lacks is packed.

Guarantees: a dataset whose corpora look as they did is kept after a glance at their files; corpora and utterances that came
since are added, and no shard changes; what was changed or taken away since is refused by name, so that nothing is trained
on speech that the recipe's corpora no longer hold. Corpora that are not there any more are taken as they were packed.
"""

import time

from launch.pack import quarantine_lines
from launch.runner import Runner
from launch.tally import Tally
from ser.data import CorpusConfig, DataConfig
from ser.job import digest
from ser.protocol import load_protocol
from shards import manifest, origin
from shards.dataset import Dataset
from shards.errors import UserError
from shards.index import ShardReport
from shards.spec import measure
from shards.store import Store
from shards.utterance import Utterance


def pack_stage(runner: Runner) -> None:
    """Generate the corpora that are generated, then pack all that the dataset does not hold yet.

    Raises:
        UserError: A corpus cannot be read, or the dataset was packed from what it no longer says or with other options.
    """
    began, data = time.perf_counter(), runner.recipe.data
    if data.path.startswith("memory://"):
        raise UserError(
            "a dataset in memory is seen by one process, and a run has several",
            where=data.path,
            hint="set data.path to a folder, or to a URL such as s3://bucket/folder",
        )
    store = Store(data.path)
    there = manifest.load(store)
    known = origin.Known.load(store) if there else origin.Known()
    _refuse_other_options(known, data)
    due = [c for c in data.corpora if not (there and known.still(name_of(c), c.root))]
    names = [name_of(corpus) for corpus in data.corpora]
    if not due:
        _warn_of_others(runner, known.only(names))
        runner.record("pack", 0, 1, began)
        return
    _generate(runner, due)
    given = [_read(corpus, name_of(corpus) in known.corpora) for corpus in due]
    lacking = origin.lacking(store, there, known.only(names), given) if there else []
    made, note = 0, f"{len(lacking):,} utterances added" if lacking else ""
    # Where another command packed, pack itself says whether that was the same.
    if lacking or not known.options:
        dataset = _pack(runner, [s.utterance for one in given for s in one.sources], add=bool(lacking))
        made = len(dataset.shards) - (len(there["shards"]) if there else 0)
        hours = float(dataset.samples.sum()) / 16000 / 3600
        note = note or f"{len(dataset):,} utterances, {hours:.2f} h"
    known.options = options(data)
    known.corpora |= {one.name: one.look for one in given}
    known.save(store)
    _warn_of_others(runner, known.only(names))
    runner.record("pack", made, 0 if made else 1, began, note)


def name_of(corpus: CorpusConfig) -> str:
    """What a corpus of a recipe is known by."""
    return digest(corpus.model_dump(mode="json", exclude={"transcripts"}))


def options(data: DataConfig) -> dict[str, float]:
    """What shards depend on besides the corpora."""
    return {"shard_seconds": data.shard_seconds, "max_seconds": data.max_seconds}


def _warn_of_others(runner: Runner, known: origin.Known) -> None:
    """Say so where the dataset holds more than the recipe's corpora gave, and nothing chooses among it."""
    recipe = runner.recipe
    held = manifest.require(Store(recipe.data.path))["utterances"]
    more = held - len({key for look in known.corpora.values() for key in look.tastes})
    if more > 0 and not load_protocol(recipe.protocol).corpora:
        runner.display.warn(
            f"{recipe.data.path} holds {more:,} utterances that no corpus of this recipe gave, and they take part: "
            "name those that should in protocol.corpora, or pack into another folder (data.path=FOLDER)"
        )


def _refuse_other_options(known: origin.Known, data: DataConfig) -> None:
    """A dataset keeps the options that it was packed with."""
    for name, value in options(data).items():
        before = known.options.get(name, value)
        if before != value:
            raise UserError(
                f"the dataset was packed with data.{name}={before:g}, and this recipe says {value:g}",
                where=data.path,
                hint=f"data.{name}={before:g} uses it as it is; data.path=FOLDER packs another one",
            )


def _read(corpus: CorpusConfig, packed: bool) -> origin.Given:
    """What a corpus gives now."""
    try:
        utterances = list(corpus.utterances())
    except UserError as error:
        if not packed:
            raise
        what = f"a corpus is no longer what was packed: {error.what}"
        raise UserError(what, where=error.where, hint=origin.AGAIN) from error
    sources = measure(utterances)
    return origin.Given(name_of(corpus), corpus.root, sources, origin.look(corpus.root, sources))


def _generate(runner: Runner, corpora: list[CorpusConfig]) -> None:
    for corpus in corpora:
        if corpus.generate is not None:
            from shards.corpora import spokenaffect

            with runner.display.bar(f"generate {corpus.reader}") as bar:
                spokenaffect.generate(corpus.root, progress=bar.update, **dict(corpus.generate))


def _pack(runner: Runner, utterances: list[Utterance], add: bool) -> Dataset:
    from cluster.pack import over
    from shards.pack import pack

    data, tally = runner.recipe.data, Tally()
    with runner.display.bar("pack") as bar:

        def packed(report: ShardReport, done: int, total: int) -> None:
            tally.add(runner.session().node, report.rows, report.seconds)
            bar.update(done, total, tally.pace())

        dataset = pack(
            utterances, data.path, data.shard_seconds, add=add, run=lambda f, items: over(runner.session())(f, items),
            progress=packed, max_quarantined=data.max_quarantined, max_seconds=data.max_seconds,
        )  # fmt: skip
    tally.show(runner.display, "pack")
    for line in quarantine_lines(dataset):
        runner.display.warn(line)
    return dataset
