"""How fast batches come: `python -m tests.bench.loader [--utterances N] [--seconds S] [--slot-seconds S] [--repeats R]`.

Packs synthetic utterances into a temporary folder and times, on files in the page cache, one thread a process:

- ceilings: the tars read from end to end; `soundfile.read` of FLAC bytes that lie in memory, nothing else;
- the peer: webdataset.WebDataset over the same tars with the same decoding, padded to batches of the same size;
- ours: `shards.loader`, the same audio in the plan's shuffled order, in this process and with worker processes;
- stored frame features (64 bands, 100 frames a second, float16) by the same loader, against copying the same numbers.

Each rate is the best of the repeats, from the second batch to the last; the first batch's delay is the start-up.
"""

import argparse
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
import webdataset
from torch.utils.data import DataLoader

from shards.dataset import Dataset
from shards.loader import Loader, Needs, worker_context
from shards.pack import pack
from shards.plan import Plan, PlanConfig
from shards.targets import VIEW_POLICY, Output, TargetSpec, TargetStore
from shards.utterance import SAMPLE_RATE, Utterance
from shards.views import ViewPolicy

FRAMES = 100  # a second


def make(folder: Path, count: int, seconds: float) -> Dataset:
    """`count` utterances of 0.5 to 1.5 times `seconds`: a few harmonics under a syllable-like envelope, with noise."""
    rng = np.random.default_rng(0)
    (folder / "wav").mkdir()
    utterances = []
    for i in range(count):
        t = np.arange(int(seconds * SAMPLE_RATE * rng.uniform(0.5, 1.5))) / SAMPLE_RATE
        pitch = rng.uniform(90, 250)
        voice = sum(np.sin(2 * np.pi * pitch * h * t) / h for h in (1, 2, 3, 5))
        audio = 0.2 * voice * np.sin(2 * np.pi * 2 * t) ** 2 + rng.normal(0, 0.02, len(t))
        path = str(folder / "wav" / f"{i:06d}.wav")
        soundfile.write(path, np.clip(audio, -1, 0.999), SAMPLE_RATE, subtype="PCM_16")
        utterances.append(Utterance(key=f"bench-{i:06d}", corpus="bench", audio=path, recording=str(i)))
    return pack(utterances, str(folder / "dataset"), shard_seconds=600)


def store_frames(dataset: Dataset) -> TargetStore:
    spec = TargetSpec("mel", (Output("mel", "frame", (64,), "float16"),), {VIEW_POLICY: ViewPolicy().hash()})
    store, rng = TargetStore.create(dataset, spec), np.random.default_rng(0)
    for unit in store.due(np.ones(len(dataset), bool), [0]):
        frames = [
            rng.standard_normal((int(n) * FRAMES // SAMPLE_RATE, 64), np.float32)
            for n in dataset.samples[unit.rows]
        ]
        store.write(unit, np.ones(len(unit.rows), np.uint8), {"mel": frames})
    return store


def decode(flac: bytes) -> np.ndarray:
    return soundfile.read(io.BytesIO(flac), dtype="float32")[0]


def pad(rows: list) -> torch.Tensor:
    out = np.zeros((len(rows), max(map(len, rows))), np.float32)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return torch.from_numpy(out)


def decode_sample(sample: dict) -> np.ndarray:
    return decode(sample["flac"])


def peer(dataset: Dataset, batch: int, workers: int) -> Iterator[int]:
    urls = [shard.url for shard in dataset.shards]
    source = (
        webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
        .map(decode_sample)
        .batched(batch, collation_fn=pad)
    )
    context = worker_context() if workers else None
    for found in DataLoader(source, batch_size=None, num_workers=workers, multiprocessing_context=context):
        yield len(found)


def ours(dataset: Dataset, plan: Plan, needs: Needs, workers: int) -> Iterator[int]:
    for _, batches in Loader(dataset, plan, needs, None, 0, 1, 0, plan.total_steps(1), workers):
        yield sum(map(len, batches))


def raw(dataset: Dataset) -> Iterator[int]:
    for shard in dataset.shards:
        with open(shard.url, "rb", buffering=0) as tar:
            while tar.read(1 << 20):
                pass
        yield shard.rows.stop - shard.rows.start


def decoding(flacs: list[bytes], batch: int) -> Iterator[int]:
    for i in range(0, len(flacs), batch):
        yield len([decode(flac) for flac in flacs[i : i + batch]])


def copying(frames: list[np.ndarray], batch: int) -> Iterator[int]:
    for i in range(0, len(frames), batch):
        rows = frames[i : i + batch]
        out = np.zeros((len(rows), max(map(len, rows)), 64), np.float32)
        for j, row in enumerate(rows):
            out[j, : len(row)] = row
        yield len(rows)


class Contender(NamedTuple):
    """One line of the table: what to run, and the lines that it is measured against."""

    label: str
    run: Callable[[], Iterable[int]]
    ceiling: str = ""
    peer: str = ""
    processes: int = 0


def race(contenders: list[Contender], repeats: int) -> dict[str, tuple[float, float]]:
    """label -> (utterances a second after the first item, seconds until the first item), the best of the rounds.

    Everybody runs once a round, so that a busy machine is busy for all.
    """
    found = {c.label: (0.0, np.inf) for c in contenders}
    for _ in range(repeats):
        for contender in contenders:
            begin, run = time.perf_counter(), iter(contender.run())
            next(run)
            first = time.perf_counter()
            rate = sum(run) / (time.perf_counter() - first)
            best, start = found[contender.label]
            found[contender.label] = max(best, rate), min(start, first - begin)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--utterances", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=3.0, help="mean length of an utterance")
    parser.add_argument("--slot-seconds", type=float, default=120.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="bench-loader-") as name:
        dataset = make(Path(name), options.utterances, options.seconds)
        store = store_frames(dataset)
        hours = float(dataset.samples.sum()) / SAMPLE_RATE / 3600
        megabytes = sum(shard.bytes for shard in dataset.shards) / 1e6
        config = PlanConfig(seed=0, slot_seconds=options.slot_seconds, slots=1)
        plan = Plan(
            dataset.key_hash, dataset.samples, dataset.shard, dataset.corpus, np.arange(len(dataset)), config
        )
        batch = max(1, len(dataset) // plan.total_steps(1))
        print(
            f"{len(dataset)} utterances, {hours:.2f} h, {megabytes:.0f} MB in {len(dataset.shards)} shards; "
            f"{plan.total_steps(1)} slots of about {batch}; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
        )
        flacs = dataset.flac(np.arange(len(dataset)))
        rows = np.concatenate([slot.rows for step in range(plan.total_steps(1)) for slot in plan.step(step)])
        frames = [row.copy() for row in store.read(rows)["mel"]]
        audio, features = Needs(waveform=True), Needs(features={"mel": store})
        contenders = [
            Contender("ceiling: tars read raw", partial(raw, dataset)),
            Contender("ceiling: soundfile.read only", partial(decoding, flacs, batch)),
            Contender("ceiling: copying frames", partial(copying, frames, batch)),
        ]
        for n in [0, *options.workers]:
            theirs = f"webdataset, {n} workers"
            contenders += [
                Contender(theirs, partial(peer, dataset, batch, n), contenders[1].label, "", n),
                Contender(
                    f"ours, {n} workers",
                    partial(ours, dataset, plan, audio, n),
                    contenders[1].label,
                    theirs,
                    n,
                ),
                Contender(
                    f"ours, frames, {n} workers",
                    partial(ours, dataset, plan, features, n),
                    contenders[2].label,
                    "",
                    n,
                ),
            ]
        found = race(contenders, options.repeats)
        print(
            f"{'':32}{'utt/s':>8}{'hours/s':>9}{'MB/s':>7}{'of ceiling':>12}{'of peer':>9}{'first batch':>13}"
        )
        for c in contenders:
            rate, delay = found[c.label]
            # As many processes as there are workers can decode at once, no more than there are cores.
            limit = found[c.ceiling][0] * min(max(c.processes, 1), os.cpu_count() or 1) if c.ceiling else 0
            of_ceiling = f"{rate / limit:.2f}" if limit else ""
            of_peer = f"{rate / found[c.peer][0]:.2f}" if c.peer else ""
            share = rate / len(dataset)
            print(
                f"{c.label:32}{rate:8.0f}{share * hours:9.3f}{share * megabytes:7.0f}{of_ceiling:>12}{of_peer:>9}"
                f"{delay:11.2f} s"
            )


if __name__ == "__main__":
    main()
