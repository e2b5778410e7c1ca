"""Transcripts by a Whisper model, by hub name or folder, written beside the dataset without packing anything again.

Guarantees: greedy decoding of the clean utterance, so a second call hears the same; recordings longer than Whisper's 30 s
are cut into equal parts and joined; an utterance that cannot be read has no text; the recogniser is recorded as
`asr:<model>` with its weights' sha256 (or its revision on the hub), settings and licence.
Gives up: beams, prompts, timestamps.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ser.licences import of_checkpoint
from ser.models.config import AcousticConfig
from ser.models.hub import hub_errors
from shards import transcripts
from shards.audio import BadAudio
from shards.dataset import Dataset
from shards.errors import UserError
from shards.utterance import SAMPLE_RATE

WINDOW = 30 * SAMPLE_RATE
# What Whisper calls the languages of a dataset; others are left for it to guess.
LANGUAGES = {
    "en",
    "fi",
    "fr",
    "de",
    "pl",
    "ur",
    "it",
    "es",
    "sv",
    "nl",
    "pt",
    "ru",
    "zh",
    "ja",
    "ko",
    "ar",
    "tr",
    "hi",
}

Progress = Callable[[int, int], None]


def transcribe(
    url: str, model: str, *, name: str | None = None, batch: int = 8, device: str = "cpu", max_tokens: int = 200,
    local_files_only: bool = False, progress: Progress | None = None,
) -> str:  # fmt: skip
    """Transcribe what a dataset has no transcripts of yet.

    Args:
        url: The dataset.
        model: Hub name or folder of a Whisper checkpoint.
        name: What it is called in `asr:<name>`; None takes the hub name, or the folder's own.
        batch: Utterances at once.
        max_tokens: Longest transcript of a part.
        progress: Called with (utterances done, of how many due).

    Returns:
        The text source, `asr:<name>`: models read it with `text_from: asr:<name>`.

    Raises:
        UserError: No such checkpoint, none of Whisper's, or transcripts of that name made otherwise.
    """
    dataset = Dataset.open(url)
    local = Path(model).expanduser()
    source = f"asr:{name or (local.resolve().name if local.is_dir() else model)}"
    recogniser = Recogniser(model, device, max_tokens, local_files_only)
    transcripts.settle(dataset.store, source, recogniser.facts())
    shards = transcripts.due(dataset, source)
    total, done = sum(s.rows.stop - s.rows.start for s in shards), 0
    for shard in shards:
        rows = np.arange(shard.rows.start, shard.rows.stop)
        texts: list[str | None] = []
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            languages = [dataset.languages[c] if c >= 0 else None for c in np.asarray(dataset.language)[part]]
            texts += recogniser(dataset.audio(part), languages)
            done += len(part)
            if progress:
                progress(done, total)
        transcripts.write(dataset, source, shard, texts)
    return source


class Recogniser:
    """A Whisper checkpoint that turns waveforms into texts."""

    def __init__(self, model: str, device: str, max_tokens: int, local_files_only: bool):
        from transformers import AutoConfig, AutoProcessor, WhisperForConditionalGeneration

        self.name, self.device, self.max_tokens = model, device, max_tokens
        with hub_errors(AcousticConfig(name=model)):
            shape = AutoConfig.from_pretrained(
                model, local_files_only=local_files_only, trust_remote_code=False
            )
            if shape.model_type != "whisper":
                raise UserError(
                    f"a {shape.model_type} checkpoint is no Whisper",
                    where=model,
                    hint="openai/whisper-small, ...",
                )
            self.processor: Any = AutoProcessor.from_pretrained(
                model, local_files_only=local_files_only, trust_remote_code=False
            )
            self.model: Any = WhisperForConditionalGeneration.from_pretrained(
                model, local_files_only=local_files_only, trust_remote_code=False, dtype=torch.float32
            )
        self.model.to(device).eval()
        self.multilingual = bool(getattr(self.model.generation_config, "is_multilingual", False))

    def facts(self) -> dict[str, Any]:
        """What the transcripts depend on."""
        folder = Path(self.name).expanduser()
        weights: Any = getattr(self.model.config, "_commit_hash", None)
        if folder.is_dir():
            weights = {
                p.name: hashlib.sha256(p.read_bytes()).hexdigest()
                for p in sorted(folder.glob("*.safetensors"))
            }
        licence = of_checkpoint(self.name)
        return {
            "model": folder.resolve().name if folder.is_dir() else self.name,
            "weights": weights,
            "max_tokens": self.max_tokens,
            "multilingual": self.multilingual,
            "licence": licence.rpartition(": ")[2],
        }

    def __call__(self, audio: list[Any], languages: list[str | None]) -> list[str | None]:
        """A text for each waveform (n,) at 16 kHz, None for what is broken."""
        out: list[str | None] = [None] * len(audio)
        for language in dict.fromkeys(languages):
            mine = [
                i
                for i, said in enumerate(languages)
                if said == language and not isinstance(audio[i], BadAudio)
            ]
            cuts = [(i, part) for i in mine for part in _parts(audio[i])]
            for i, text in zip([i for i, _ in cuts], self._texts([part for _, part in cuts], language)):
                out[i] = f"{out[i]} {text}" if out[i] else text
        return out

    def _texts(self, waves: list[np.ndarray], language: str | None) -> list[str]:
        if not waves:
            return []
        given = self.processor.feature_extractor(
            waves, sampling_rate=SAMPLE_RATE, return_tensors="pt", return_attention_mask=True
        )
        more: dict[str, Any] = {}
        if self.multilingual:
            more = {"task": "transcribe", "language": language if language in LANGUAGES else None}
        with torch.inference_mode():
            said = self.model.generate(
                given.input_features.to(self.device), attention_mask=given.attention_mask.to(self.device),
                max_new_tokens=self.max_tokens, do_sample=False, num_beams=1, **more,
            )  # fmt: skip
        return [
            text.strip() for text in self.processor.tokenizer.batch_decode(said, skip_special_tokens=True)
        ]


def _parts(wave: np.ndarray) -> Iterator[np.ndarray]:
    yield from np.array_split(wave, max(1, -(-len(wave) // WINDOW)))
