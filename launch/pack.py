"""`ser pack --corpus`, withdrawal, and who has heard a speaker."""

import difflib
import json
from collections import Counter
from pathlib import Path

from launch.display import Display
from ser import pin
from ser.exposure import Exposure, who_heard
from shards.dataset import Dataset
from shards.errors import UserError
from shards.store import Store

SHARD_SECONDS = 3600.0


def pack_corpora(
    named: list[str],
    out: str | None,
    add: bool,
    shard_seconds: float | None,
    workers: int | None,
    display: Display,
    **limits: float | None,
) -> None:
    """Pack READER=FOLDER corpora into a dataset, in parallel; `limits` are the packing's own max_seconds and max_quarantined."""
    from cluster.pack import Parallel
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
    given = {name: value for name, value in limits.items() if value is not None}
    with Parallel(workers) as parallel, display.bar("pack") as bar:
        dataset = pack(
            utterances, out, shard_seconds or SHARD_SECONDS, add=add, run=parallel,
            progress=lambda report, done, total: bar.update(done, total), **given,
        )  # fmt: skip
    describe_dataset(dataset.url, display)
    for line in quarantine_lines(dataset):
        display.warn(line)


def quarantine_lines(dataset: Dataset, most: int = 5) -> list[str]:
    """How many utterances packing left out, the first keys and their reasons; nothing where it left none out."""
    left_out = dataset.quarantined()
    if not left_out:
        return []
    lines = [f"{len(left_out):,} utterances were left out because their audio is broken:"]
    lines += [f"  {entry['corpus']}/{entry['key']}: {entry['reason']}" for entry in left_out[:most]]
    lines += [f"  and {len(left_out) - most:,} more"] if len(left_out) > most else []
    long = sum(entry["reason"].startswith("too long") for entry in left_out)
    if long:
        lines.append(
            f"  {long:,} are too long: pack anew with --max-seconds, or data.max_seconds of a recipe"
        )
    return lines


def verify_dataset(url: str, workers: int | None, display: Display) -> int:
    """Re-read a dataset and its targets; print every fault, then what was left out and which targets are stale.

    Returns:
        How many faults there are.
    """
    from cluster.pack import Parallel
    from shards.target_list import list_targets
    from shards.verify import verify

    with Parallel(workers) as parallel:
        problems = verify(url, run=parallel)
    for problem in problems:
        display.say(str(problem))
    try:
        dataset = Dataset.open(url)
        lines, targets = quarantine_lines(dataset, most=100), list_targets(dataset)
    except UserError:
        if not problems:
            raise
        lines, targets = [], []  # the faults above say why
    for line in lines:
        display.say(line)
    for info in targets:
        name, why = f"{info.teacher}/{info.fingerprint}", info.stale
        if not why and info.twins:
            why = f"the same teacher and exposure as {', '.join(info.twins)}: only one of them is read by a recipe"
        if why:
            display.say(
                f"targets {name}, {info.bytes / 1e6:.1f} MB: {why} (ser data {url} --remove-targets {name})"
            )
    display.say(f"{url}: {'ok' if not problems else f'{len(problems)} problems'}")
    return len(problems)


def remove_targets(url: str, name: str, display: Display) -> None:
    """Delete stored targets or features, named TEACHER/FINGERPRINT."""
    from shards.target_list import remove

    teacher, slash, fingerprint = name.partition("/")
    if not slash or not fingerprint:
        raise UserError(
            f"{name!r} is not TEACHER/FINGERPRINT", where=url, hint=f"ser verify {url} lists stale ones"
        )
    size = remove(Dataset.open(url), teacher, fingerprint)
    display.say(f"removed {name}: {size / 1e6:.1f} MB; a recipe that reads them makes them again")


def withdraw_or_erase(out: str | None, speaker: str | None, erase_too: bool, display: Display) -> None:
    """Withdraw a speaker (a tombstone that everything honours), or rewrite what withdrawn keys lie in."""
    from cluster.pack import Parallel
    from shards.withdraw import erase, withdraw

    if out is None:
        raise UserError("which dataset?", hint="ser pack --withdraw-speaker CORPUS/SPEAKER --out DATASET")
    if speaker:
        dataset = withdraw(out, speaker)
        display.say(
            f"{speaker} is withdrawn: {int(dataset.alive.sum()):,} of {len(dataset):,} utterances are left"
        )
    if erase_too:
        with Parallel() as parallel:
            dataset = erase(out, run=parallel)
        display.say(f"erased: {len(dataset):,} utterances in {len(dataset.shards)} shards")


def describe_dataset(url: str, display: Display) -> None:
    """Counts, hours and licences of a dataset, a row a corpus."""
    dataset = Dataset.open(url)
    left_out = Counter(entry["corpus"] for entry in dataset.quarantined())
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
                left_out.get(corpus, 0),
                speakers,
                f"{hours:.2f}",
                "; ".join(x or "not stated" for x in licences),
            )
        )
    display.table(
        f"{url} (generation {dataset.generation})",
        ["corpus", "utterances", "left out", "speakers", "hours", "licence"],
        rows,
    )


def list_who_heard(url: str, speaker: str, folders: list[Path], display: Display) -> None:
    """Every stored target, finished model and export whose exposure includes a speaker, erased ones too.

    Looks at the dataset's targets, the runs that told the dataset where they lie, and `folders`; says which it searched.
    Gives up: trainings that are not finished, and copies of models elsewhere.

    Raises:
        UserError: No such speaker is or was in the dataset.
    """
    dataset = Dataset.open(url)
    gone = {entry["speaker"] for entry in dataset.meta["withdrawn"]}
    known = {*dataset.speakers, *gone}
    known |= {f"{e['corpus']}/{e['speaker']}" for e in dataset.quarantined() if e["speaker"]}
    if speaker not in known:
        near = difflib.get_close_matches(speaker, known, 3)
        raise UserError(
            f"no speaker {speaker!r} is or was in the dataset",
            where=url,
            hint=f"did you mean {', '.join(near)}?" if near else "speakers are CORPUS/SPEAKER",
        )
    runs = pin.registered(dataset.store)
    named = [Path(run) for run, _ in runs if "://" not in run]
    here = list(dict.fromkeys(path.resolve() for path in [*named, *folders]))
    searched = [path for path in here if path.is_dir()]
    away = list(dict.fromkeys(run for run, _ in runs if "://" in run))
    found: dict[str, Exposure] = {}
    for folder in searched:
        for path in sorted(folder.glob("**/model.json")):
            _note(found, f"model {path.parent}", path.read_bytes(), "meta")
        for path in sorted(folder.glob("**/ser.json")):
            _note(found, f"export {path.parent}", path.read_bytes(), "meta")
    for store in map(Store, away):
        for name in store.list():
            if name.endswith(("/model.json", "/ser.json")):
                what = "export" if name.endswith("/ser.json") else "model"
                _note(found, f"{what} {store.url}/{name.rpartition('/')[0]}", store.read(name), "meta")
    names = [name for name in dataset.store.list("targets") if name.endswith("/targets.json")]
    for name in names:
        _note(
            found,
            f"targets {dataset.store.path(name.rpartition('/')[0])}",
            dataset.store.read(name),
            "fields",
        )
    heard = who_heard(speaker, found)
    state = " (withdrawn)" if speaker in gone else ""
    # Lines, not a table: a path that is cut helps nobody.
    display.say(f"who has heard {speaker}{state}:")
    for what, how in heard.items():
        display.say(f"  {how}: {what}")
    if not heard:
        display.say("  nothing that was searched")
    display.say(
        f"searched: {len(names)} sets of targets; models in {', '.join(map(str, [*searched, *away])) or 'no folder'}"
    )
    hosts = {Path(run).resolve(): host for run, host in runs if "://" not in run}
    lost = [
        f"{path} (of host {hosts[path]})" if path in hosts else str(path)
        for path in here
        if path not in searched
    ]
    if lost:
        display.warn(f"not there, so not searched: {', '.join(lost)}; name other folders with --runs")


def _note(found: dict[str, Exposure], what: str, text: bytes, under: str) -> None:
    """Add the exposure that a JSON file tells of, if it does."""
    try:
        values = json.loads(text).get(under, {}).get("exposure")
    except (ValueError, AttributeError):
        return  # another program's file of the same name
    if values:
        found[what] = Exposure.from_json(values)
