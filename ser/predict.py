"""Emotion of audio files by a saved model: what a student is for.

Guarantees: one record a stretch of speech, in the order of the files; the same answers for any batch size, within the
backbone's padding tolerance; a file that cannot be read gives a record with the reason and stops nothing.

Gives up: streaming; a recording longer than `window` is cut into equal stretches, without looking for pauses.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ser.inputs import FUNCTIONALS, complete
from ser.models import SERModel, load
from ser.protocol import DIMENSIONS
from shards.audio import MAX_SECONDS, BadAudio, decode, to_mono_16k
from shards.batch import Batch
from shards.errors import UserError
from shards.slots import cut
from shards.utterance import SAMPLE_RATE

SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".aiff", ".aif", ".au", ".m4a")
# Seconds of speech that are held in memory at once, so that lengths can be sorted.
TOGETHER = 1800.0


def find_model(path: str) -> Path:
    """The model's folder: given itself, or as the training's folder that holds it.

    Raises:
        UserError: There is none.
    """
    for folder in (Path(path), Path(path) / "model"):
        if (folder / "model.json").is_file():
            return folder
    raise UserError(
        "there is no saved model",
        where=path,
        hint="give a training's folder, for example runs/demo/folds/fixed/student/seed-0",
    )


def find_audio(paths: Iterable[str]) -> list[Path]:
    """Audio files: those named, and all below the folders named, sorted.

    Raises:
        UserError: A path that does not exist, or nothing at all.
    """
    found: list[Path] = []
    for text in paths:
        path = Path(text)
        if path.is_dir():
            found += sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        elif path.is_file():
            found.append(path)
        else:
            raise UserError("there is no such file or folder", where=text)
    if not found:
        raise UserError("no audio files", where=", ".join(paths), hint=f"known endings: {' '.join(SUFFIXES)}")
    return found


def read_texts(path: Path) -> dict[str, str]:
    """Transcripts by path, from lines `path<tab>transcript`.

    Raises:
        UserError: No such file, or a line without a tab.
    """
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise UserError(f"the transcripts cannot be read: {error.strerror}", where=str(path)) from None
    for number, line in enumerate(lines, 1):
        if "\t" not in line:
            raise UserError(
                "a line without a tab", where=f"{path}:{number}", hint="audio.wav<tab>what was said"
            )
    return dict(line.split("\t", 1) for line in lines)


def predict(
    model_folder: str, paths: Iterable[str], texts: Mapping[str, str] | None = None, batch_seconds: float = 60.0,
    window: float = 30.0, device: str = "cpu",
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Emotion of every file.

    Args:
        model_folder: A saved model, or the training's folder around it.
        paths: Files and folders.
        texts: Path as given (or file name) -> transcript, for models that read.
        batch_seconds: Padded seconds a forward pass.
        window: Longer recordings are cut into equal stretches of at most this many seconds.

    Yields:
        {path, start, end, emotion, probabilities: {class: p}, dimensions: {name: value in [0, 1]}} with what the model
        has, or {path, error}.

    Raises:
        UserError: No model, no audio, or a model that needs transcripts (no modality dropout) without any.
    """
    model, meta = load(find_model(model_folder))
    # A model trained with modality dropout answers from what there is.
    spares = model.inputs != {"text"} and getattr(model.config, "modality_dropout", 0.0) > 0
    if "text" in model.inputs and not texts and not spares:
        raise UserError(
            f"{meta.get('name', 'the model')} reads transcripts as well as audio",
            where=model_folder,
            hint="give them (--texts FILE, a line `path<tab>text` each), or choose a student: it needs audio alone",
        )
    if "layers" in model.inputs:
        raise UserError(
            "a probe reads stored hidden states of its encoder, so it predicts inside a run only",
            where=model_folder,
            hint="predict with a truncated encoder of the same depth",
        )
    if missing := set(model.inputs) & set(FUNCTIONALS):
        raise UserError(
            f"classical models on {', '.join(missing)} predict inside a run only", where=model_folder
        )
    if meta.get("encoders"):
        from ser.frames import attach

        attach(model, find_model(model_folder), meta)
    model.to(device).eval()
    classes = meta.get("classes", [])
    for pieces in _groups(find_audio(paths), window):
        said = _answers(model, [p for p in pieces if not p.error], texts or {}, batch_seconds, device)
        for piece in pieces:
            yield piece.record | ({"error": piece.error} if piece.error else _words(*next(said), classes))


def _groups(files: list[Path], window: float) -> Iterator[list["_Piece"]]:
    held: list[_Piece] = []
    for path in files:
        held += _pieces(path, window)
        if sum(len(p.samples) for p in held) > TOGETHER * SAMPLE_RATE:
            yield held
            held = []
    yield held


class _Piece:
    """A stretch of a file: 16 kHz samples, or why there are none."""

    def __init__(self, path: Path, start: float = 0.0, samples: np.ndarray | None = None, error: str = ""):
        self.path, self.error = path, error
        self.samples = np.zeros(0, np.float32) if samples is None else samples
        self.record: dict[str, Any] = {"path": str(path)}
        if not error:
            self.record |= {
                "start": round(start, 3),
                "end": round(start + len(self.samples) / SAMPLE_RATE, 3),
            }


def _pieces(path: Path, window: float) -> Iterator[_Piece]:
    try:
        samples = to_mono_16k(*decode(path, max_seconds=max(MAX_SECONDS, 4 * 3600)))
    except BadAudio as error:
        yield _Piece(path, error=error.reason)
        return
    count = max(1, int(np.ceil(len(samples) / (window * SAMPLE_RATE))))
    start = 0
    for part in np.array_split(samples, count):
        yield _Piece(path, start / SAMPLE_RATE, part)
        start += len(part)


def _answers(
    model: SERModel, pieces: list[_Piece], texts: Mapping[str, str], batch_seconds: float, device: str
) -> Iterator[tuple[np.ndarray | None, np.ndarray | None]]:
    """Logits (K,) and dimensions (3,) of each piece, in order."""
    lengths = np.array([len(piece.samples) for piece in pieces], np.int64)
    order = np.argsort(lengths, kind="stable")
    said: dict[int, tuple[np.ndarray | None, np.ndarray | None]] = {}
    borders = cut(lengths[order], int(batch_seconds * SAMPLE_RATE)) if len(order) else np.zeros(1, np.int64)
    for first, last in pairwise(borders):
        numbers = order[first:last]
        if model.needs_equal_lengths:
            parts = [numbers[lengths[numbers] == n] for n in np.unique(lengths[numbers])]
        else:
            parts = [numbers]
        for part in parts:
            batch = _batch([pieces[i] for i in part], texts)
            with torch.inference_mode():
                output = model(complete(batch.to(device), model))
            for row, i in enumerate(part):
                said[int(i)] = _row(output.logits, row), _row(output.dimensions, row)
    return iter([said[i] for i in range(len(pieces))])


def _row(values: torch.Tensor | None, row: int) -> np.ndarray | None:
    return None if values is None else values[row].float().cpu().numpy()


def _batch(pieces: list[_Piece], texts: Mapping[str, str]) -> Batch:
    lengths = torch.tensor([len(piece.samples) for piece in pieces])
    waveform = torch.zeros(len(pieces), int(lengths.max()))
    for row, piece in enumerate(pieces):
        waveform[row, : len(piece.samples)] = torch.from_numpy(piece.samples)
    numbers = np.arange(len(pieces))
    return Batch(
        numbers, np.zeros_like(numbers), [str(piece.path) for piece in pieces], torch.ones(len(pieces), dtype=torch.bool),
        lengths, waveform, text=[texts.get(str(piece.path), texts.get(piece.path.name)) for piece in pieces],
    )  # fmt: skip


def _words(logits: np.ndarray | None, dimensions: np.ndarray | None, classes: list[str]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    if logits is not None:
        p = np.exp(logits.astype(np.float64) - logits.max())
        p /= p.sum()
        record["emotion"] = classes[int(p.argmax())]
        record["probabilities"] = {name: round(float(value), 6) for name, value in zip(classes, p)}
    if dimensions is not None:
        record["dimensions"] = {name: round(float(v), 6) for name, v in zip(DIMENSIONS, dimensions)}
    return record
