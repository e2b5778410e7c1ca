"""Transcripts by a tiny random Whisper beside a dataset: nothing is packed again, work goes on, a recipe reads them."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from ser.job import Job, directory, identity
from ser.produce import teacher_spec
from ser.recipe import load
from ser.setting import open_setting
from ser.train import train
from ser.transcribe import Recogniser, transcribe
from shards import transcripts
from shards.dataset import Dataset
from shards.errors import UserError
from tests import tiny


def write_whisper(folder: Path, seed: int = 0) -> str:
    """A checkpoint of Whisper's own layout with random weights and a byte-level tokenizer without merges."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import (
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizer,
    )

    folder.mkdir(parents=True)
    letters = sorted(ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"]
    vocabulary = {token: i for i, token in enumerate([*letters, *special])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    end, start, plain = (vocabulary[name] for name in special)
    tokenizer = WhisperTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), unk_token=special[0], bos_token=special[0],
        eos_token=special[0], pad_token=special[0],
    )  # fmt: skip
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    torch.manual_seed(seed)
    config = WhisperConfig(
        vocab_size=len(tokenizer), num_mel_bins=16, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_source_positions=1500,
        max_target_positions=64, decoder_start_token_id=start, eos_token_id=end, pad_token_id=end, bos_token_id=end,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    with torch.no_grad():  # random weights far enough apart that what is heard matters
        for p in model.parameters():
            p.mul_(8.0)
    model.generation_config.update(
        no_timestamps_token_id=plain, is_multilingual=False, decoder_start_token_id=start, eos_token_id=end, pad_token_id=end,
        return_timestamps=False, max_length=64,
    )  # fmt: skip
    model.save_pretrained(folder)
    WhisperProcessor(WhisperFeatureExtractor(feature_size=16), tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def heard(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asr")
    url = tiny.make_dataset(folder, count=16)
    before = {p.relative_to(url): p.read_bytes() for p in Path(url).rglob("*") if p.is_file()}
    whisper = write_whisper(folder / "tiny-whisper")
    source = transcribe(url, whisper, batch=4, max_tokens=6)
    return url, whisper, source, before


def test_nothing_is_packed_again(heard):
    url, _, source, before = heard
    assert source == "asr:tiny-whisper"
    after = {p.relative_to(url): p.read_bytes() for p in Path(url).rglob("*") if p.is_file()}
    assert all(after[name] == content for name, content in before.items())
    assert {name.parts[0] for name in set(after) - set(before)} == {"transcripts"}
    facts = json.loads((Path(url) / "transcripts/tiny-whisper/facts.json").read_text())
    assert facts["source"] == source and set(facts["weights"]) == {"model.safetensors"}


def test_the_texts_are_what_whisper_says(heard):
    """Against transformers' own processor and generate, an utterance at a time."""
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    url, whisper, source, _ = heard
    data = transcripts.Retold(Dataset.open(url).store, None, source)
    model = WhisperForConditionalGeneration.from_pretrained(whisper).eval()
    processor = WhisperProcessor.from_pretrained(whisper)
    rows = np.arange(4)
    told = data.fields(["text", "text_source", "key"], rows)
    for text, audio in zip(told["text"].to_pylist(), data.audio(rows)):
        given = processor(audio, sampling_rate=16000, return_tensors="pt", return_attention_mask=True)
        with torch.no_grad():
            said = model.generate(
                given.input_features, attention_mask=given.attention_mask, max_new_tokens=6, do_sample=False
            )
        assert (text or "") == processor.batch_decode(said, skip_special_tokens=True)[0].strip()
    assert any(told["text"].to_pylist()), "a recogniser that says nothing proves nothing"
    assert set(told["text_source"].to_pylist()) <= {source, "none"}
    again = pickle.loads(pickle.dumps(data))
    assert again.fields(["text"]).equals(data.fields(["text"]))
    has = np.array([t is not None for t in data.fields(["text"])["text"].to_pylist()])
    assert ((np.asarray(data.bits) & 8 != 0) == has).all()


def test_done_work_is_kept_and_lost_work_is_due(heard, monkeypatch):
    url, whisper, source, _ = heard
    data = Dataset.open(url)
    assert transcripts.due(data, source) == []
    path = Path(url) / "transcripts/tiny-whisper" / f"{data.shards[0].number:06d}.parquet"
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(UserError, match=r"1 of \d+ shards have no transcripts"):
        transcripts.Retold(data.store, None, source)
    calls = []
    monkeypatch.setattr(
        Recogniser, "__call__", lambda self, audio, languages: calls.append(len(audio)) or [None] * len(audio)
    )
    transcribe(url, whisper, batch=100, max_tokens=6)
    assert sum(calls) == data.shards[0].rows.stop
    path.write_bytes(content)


def test_another_recogniser_of_the_same_name_is_refused(heard, tmp_path):
    url, _, _, _ = heard
    other = write_whisper(tmp_path / "tiny-whisper", seed=1)
    with pytest.raises(UserError, match="weights differ"):
        transcribe(url, other, max_tokens=6)
    with pytest.raises(UserError, match="no Whisper"):
        from transformers import BertConfig

        BertConfig(hidden_size=16).save_pretrained(tmp_path / "bert")
        transcribe(url, str(tmp_path / "bert"))


def test_a_recipe_reads_them_and_records_it(heard, tmp_path):
    url, _, source, _ = heard
    text = {
        "role": "teacher",
        "model": tiny.BERT,
        "objective": [{"loss": "cross_entropy"}],
        "train": tiny.training(2),
    }
    values = tiny.recipe_values(tmp_path, url, {"text": text})
    human = load(str(tiny.write_recipe(tmp_path, values)))
    asr = load(str(tiny.write_recipe(tmp_path, values)), [f"data.text={source}"])
    (fold,) = open_setting(human).folds
    job = Job(fold, "text", 0)
    told = identity(open_setting(asr), job)
    assert told.pop("text") == source
    assert told == identity(open_setting(human), job), "without the key nothing changes"
    train(asr, job)
    facts = json.loads((directory(asr, job) / "model" / "model.json").read_text())
    assert facts["meta"]["text"] == source
    assert teacher_spec(open_setting(asr), job).fields["text"] == source
    with pytest.raises(UserError, match="ser transcribe"):
        open_setting(load(str(tiny.write_recipe(tmp_path, values)), ["data.text=asr:nobody"]))
