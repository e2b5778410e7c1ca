"""`ser pack --corpus`, withdrawal, and who has heard a speaker."""

import json
from pathlib import Path

from launch.display import Display
from ser.exposure import Exposure, who_heard
from shards.dataset import Dataset
from shards.errors import UserError


def pack_corpora(
    named: list[str], out: str | None, add: bool, shard_seconds: float, workers: int | None, display: Display
) -> None:
    """Pack READER=FOLDER corpora into a dataset, in parallel."""
    from cluster.pack import over
    from cluster.session import Session
    from shards import corpora
    from shards.pack import pack

    if out is None:
        raise UserError("where to?", hint="ser pack --corpus emodb=FOLDER --out DATASET")
    pairs = []
    for text in named:
        reader, equals, root = text.partition("=")
        if not equals:
            raise UserError(f"--corpus {text!r} is not READER=FOLDER", hint="--corpus emodb=/data/emodb")
        pairs.append((reader, root))
    utterances = [u for reader, root in pairs for u in corpora.read(reader, root)]
    with Session(cpus=workers) as session, display.bar("pack") as bar:
        dataset = pack(
            utterances, out, shard_seconds, add=add, run=over(session),
            progress=lambda report, done, total: bar.update(done, total),
        )  # fmt: skip
    describe_dataset(dataset.url, display)


def withdraw_or_erase(out: str | None, speaker: str | None, erase_too: bool, display: Display) -> None:
    """Withdraw a speaker (a tombstone that everything honours), or rewrite what withdrawn keys lie in."""
    from shards.withdraw import erase, withdraw

    if out is None:
        raise UserError("which dataset?", hint="ser pack --withdraw-speaker CORPUS/SPEAKER --out DATASET")
    if speaker:
        dataset = withdraw(out, speaker)
        display.say(
            f"{speaker} is withdrawn: {int(dataset.alive.sum()):,} of {len(dataset):,} utterances are left"
        )
    if erase_too:
        dataset = erase(out)
        display.say(f"erased: {len(dataset):,} utterances in {len(dataset.shards)} shards")


def describe_dataset(url: str, display: Display) -> None:
    """Counts, hours and licences of a dataset, a row a corpus."""
    dataset = Dataset.open(url)
    rows = []
    for code, corpus in enumerate(dataset.corpora):
        mine = (dataset.corpus == code) & dataset.alive
        licences = dataset.fields(["licence"], mine.nonzero()[0]).column("licence").unique().to_pylist()
        speakers = len(set(dataset.speaker[mine].tolist()) - {-1})
        hours = dataset.samples[mine].sum() / 16000 / 3600
        rows.append(
            (
                corpus,
                int(mine.sum()),
                speakers,
                f"{hours:.2f}",
                "; ".join(x or "not stated" for x in licences),
            )
        )
    display.table(
        f"{url} (generation {dataset.generation})",
        ["corpus", "utterances", "speakers", "hours", "licence"],
        rows,
    )


def list_who_heard(url: str, speaker: str, runs: Path, display: Display) -> None:
    """Every stored target, model and export whose exposure includes a speaker."""
    dataset = Dataset.open(url)
    if speaker not in dataset.speakers:
        raise UserError(
            f"no speaker {speaker!r} in the dataset", where=url, hint="speakers are CORPUS/SPEAKER"
        )
    found: dict[str, Exposure] = {}
    for path in sorted(runs.glob("**/model.json")):
        values = json.loads(path.read_text()).get("meta", {}).get("exposure")
        if values:
            found[f"model {path.parent}"] = Exposure.from_json(values)
    for path in sorted(Path(url).glob("targets/*/*/targets.json")):
        values = json.loads(path.read_text()).get("fields", {}).get("exposure")
        if values:
            found[f"targets {path.parent}"] = Exposure.from_json(values)
    heard = who_heard(speaker, found)
    display.table(f"who has heard {speaker}", ["what", "how"], list(heard.items()))
