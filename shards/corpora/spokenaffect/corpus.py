"""Making and reading the corpus on disk.

    audio/0007/<key>.flac   64 utterances a block, each block spoken by a fresh process
    blocks/0007.jsonl       what was spoken, a row an utterance: the block's commit mark, put after its audio
    utterances.jsonl        all rows joined with the law
    corpus.json             law, counts and sha256 of utterances.jsonl, put last: no file, no corpus

`generate` continues after SIGKILL: blocks with a mark are kept, the others are spoken again to the same bytes.
Bytes do not depend on `jobs`. On another kind of CPU the samples may differ in the last bit.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from shards import atomic
from shards.errors import UserError
from shards.utterance import SAMPLE_RATE, Utterance

CORPUS = "spokenaffect"
LAW_VERSION = 1
BLOCK = 64
LICENCE = "synthetic speech (espeak-ng), free of rights"
_PACKAGE_ROOT = Path(__file__).resolve().parents[3]


def generate(
    root: str,
    utterances: int = 6000,
    seed: int = 0,
    jobs: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Speak the corpus into `root`, or find it made.

    Args:
        root: Folder of the corpus; made if missing.
        utterances: Size of the whole corpus: 75 % train, 5 % dev, 20 % test.
        seed: Seed of the law.
        jobs: Blocks spoken at once, each by one single-threaded process.
        progress: Called as progress(utterances done, utterances in all), from this thread.

    Returns:
        The folder.

    Raises:
        UserError: a negative seed; another corpus (size, seed or law) lies there; or espeak-ng cannot be used.
    """
    from shards.corpora.spokenaffect.law import draw

    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise UserError(f"seed is {seed!r}", where="generate.seed", hint="a whole number from 0")
    folder = Path(root)
    meta = {"corpus": CORPUS, "law": LAW_VERSION, "utterances": utterances, "seed": seed, "block": BLOCK}
    if _claim(folder, meta):
        if progress:
            progress(utterances, utterances)
        return folder
    drawn = draw(utterances, seed)
    blocks = [drawn[i : i + BLOCK] for i in range(0, len(drawn), BLOCK)]
    due = [i for i in range(len(blocks)) if not _mark(folder, i).exists()]
    done = utterances - sum(len(blocks[i]) for i in due)
    if progress:
        progress(done, utterances)
    with ThreadPoolExecutor(max_workers=max(1, jobs)) as pool:
        pending = {pool.submit(_speak_block, folder, i, blocks[i]): i for i in due}
        try:
            for future in as_completed(pending):
                future.result()
                done += len(blocks[pending[future]])
                if progress:
                    progress(done, utterances)
        finally:
            for future in pending:
                future.cancel()
    _commit(folder, meta, blocks)
    return folder


def read(root: str, misheard: float = 0.0) -> Iterator[Utterance]:
    """Utterances of a generated corpus: train, then dev, then test.

    `label` is the label with its noise; `extra` holds clean_label, word, split, latent_arousal, template and noun.

    Args:
        root: Folder of the corpus.
        misheard: Share of words that a simulated recogniser replaces by another word of the language; above 0, `extra`
            also holds its transcript as asr_text and its name as asr_source.

    Raises:
        UserError: no finished corpus in `root`, or utterances.jsonl is not the one that was committed.
    """
    folder = Path(root)
    mark = folder / "corpus.json"
    if not mark.exists():
        raise UserError(
            "no finished SpokenAffect corpus",
            where=str(folder),
            hint=f"python -m shards.corpora.spokenaffect {folder}   (continues where it stopped)",
        )
    content = (folder / "utterances.jsonl").read_bytes()
    if hashlib.sha256(content).hexdigest() != json.loads(mark.read_text())["sha256"]:
        raise UserError(
            "utterances.jsonl is not the file that corpus.json was written for",
            where=str(folder),
            hint="delete corpus.json and generate again",
        )
    for line in content.decode().splitlines():
        row = json.loads(line)
        if misheard:
            row["extra"] |= {
                "asr_text": mishear(row["key"], row["text"], row["language"], misheard),
                "asr_source": f"asr:simulated ({misheard:.0%} of words wrong)",
            }
        yield Utterance(
            **{k: row[k] for k in _PLAIN},
            corpus=CORPUS,
            audio=str(folder / row["audio"]),
            recording=row["key"],
            text_source="human",
            duration=row["samples"] / SAMPLE_RATE,
            scale=tuple(row["scale"]),
            licence=LICENCE,
            extra=row["extra"],
        )


def mishear(key: str, text: str, language: str, share: float) -> str:
    """The text with a share of its words replaced by other affect words or nouns of the language; a pure function."""
    from shards.corpora.spokenaffect.words import NOUNS, WORDS

    lexicon = sorted([*WORDS[language], *NOUNS[language]])
    out = []
    for i, word in enumerate(text.split()):
        digest = hashlib.sha256(f"mishear/{key}/{i}".encode()).digest()
        if int.from_bytes(digest[:8], "big") / 2**64 < share:
            word = lexicon[int.from_bytes(digest[8:12], "big") % len(lexicon)]
        out.append(word)
    return " ".join(out)


_PLAIN = ("key", "speaker", "language", "gender", "text", "label", "valence", "arousal", "dominance")


def _claim(folder: Path, meta: dict) -> bool:
    """Take the folder for this corpus; True if the corpus is finished there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("corpus.json", "started.json"):
        if (folder / name).exists():
            there = json.loads((folder / name).read_text())
            differ = [f"{k} {there.get(k)} != {v}" for k, v in meta.items() if there.get(k) != v]
            if differ:
                raise UserError(
                    f"another SpokenAffect lies here: {', '.join(differ)}",
                    where=str(folder),
                    hint="choose another folder, or delete this one",
                )
            return name == "corpus.json"
    atomic.write(folder / "started.json", json.dumps(meta).encode())
    return False


def _mark(folder: Path, block: int) -> Path:
    return folder / "blocks" / f"{block:04d}.jsonl"


def _speak_block(folder: Path, block: int, drawn: list) -> None:
    fields = ("key", "text", "rate", "pitch", "range", "level_db", "tilt")
    requests = ({"voice": d.voice.espeak} | {f: getattr(d, f) for f in fields} for d in drawn)
    path = os.pathsep.join(filter(None, [str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH")]))
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "shards.corpora.spokenaffect.synthesis",
            str(folder / "audio" / f"{block:04d}"),
        ],
        input="".join(json.dumps(r) + "\n" for r in requests),
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    spoken = result.stdout.splitlines()
    if result.returncode != 0 or len(spoken) != len(drawn):
        raise UserError(
            f"block {block} was not spoken (exit {result.returncode}): {result.stderr.strip()[-500:]}",
            where=str(folder),
            hint="the blocks already spoken are kept: run the same command again",
        )
    _mark(folder, block).parent.mkdir(exist_ok=True)
    atomic.write(_mark(folder, block), result.stdout.encode())


def _commit(folder: Path, meta: dict, blocks: list[list]) -> None:
    from shards.corpora.spokenaffect.law import SCALE

    lines = []
    for i, drawn in enumerate(blocks):
        spoken = [json.loads(line) for line in _mark(folder, i).read_text().splitlines()]
        for d, s in zip(drawn, spoken, strict=True):
            assert d.key == s["key"], (d.key, s["key"])
            row = {
                **s,
                "audio": f"audio/{i:04d}/{d.key}.flac",
                "speaker": d.voice.speaker,
                "language": d.voice.language,
                "gender": d.voice.gender,
                "text": d.text,
                "label": d.label,
                "valence": d.valence,
                "arousal": d.arousal,
                "dominance": d.dominance,
                "scale": SCALE,
                "extra": {
                    "clean_label": d.clean,
                    "word": d.word,
                    "split": d.split,
                    "latent_arousal": d.latent,
                    "template": d.template,
                    "noun": d.noun,
                },
            }
            lines.append(json.dumps(row) + "\n")
    atomic.clean(folder, deep=True)  # of processes killed while they wrote
    content = "".join(lines).encode()
    atomic.write(folder / "utterances.jsonl", content)
    atomic.write(
        folder / "corpus.json",
        json.dumps(meta | {"sha256": hashlib.sha256(content).hexdigest()}, indent=1).encode(),
    )
