"""Transcripts by a tiny random Whisper beside a dataset: nothing is packed again, work goes on, a recipe reads them."""

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from ser.job import Job, directory, identity
from ser.online import ask
from ser.produce import teacher_spec
from ser.recipe import load
from ser.setting import open_setting
from ser.train import train
from ser.transcribe import Recogniser, transcribe
from shards import transcripts
from shards.batch import has_text, texts
from shards.dataset import Dataset
from shards.errors import UserError
from shards.targets import NO_INPUT, PRESENT
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
    data = Dataset.open(url)
    model = WhisperForConditionalGeneration.from_pretrained(whisper).eval()
    processor = WhisperProcessor.from_pretrained(whisper)
    rows = np.arange(4)
    told = texts(data, source, rows)
    for text, audio in zip(told, data.audio(rows)):
        given = processor(audio, sampling_rate=16000, return_tensors="pt", return_attention_mask=True)
        with torch.no_grad():
            said = model.generate(
                given.input_features, attention_mask=given.attention_mask, max_new_tokens=6, do_sample=False
            )
        assert (text or "") == processor.batch_decode(said, skip_special_tokens=True)[0].strip()
    assert any(told), "a recogniser that says nothing proves nothing"
    assert told != texts(data, "text", rows), "the corpus's own stay what they are"
    assert has_text(data, source, rows).tolist() == [bool(text) for text in told]
    again = pickle.loads(pickle.dumps(data))
    assert texts(again, source, rows[::-1]) == told[::-1]


def test_done_work_is_kept_and_lost_work_is_due(heard, monkeypatch):
    url, whisper, source, _ = heard
    data = Dataset.open(url)
    assert transcripts.due(data, source) == []
    path = Path(url) / "transcripts/tiny-whisper" / f"{data.shards[0].number:06d}.parquet"
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(UserError, match=r"1 of \d+ shards have no transcripts"):
        texts(Dataset.open(url), source, np.arange(2))
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


def teacher(source: str) -> dict:
    return {
        "role": "teacher",
        "model": tiny.BERT | {"text_from": source},
        "objective": [{"loss": "cross_entropy"}],
        "train": tiny.training(2),
    }


def test_a_model_reads_them_beside_one_that_reads_the_corpus_own(heard, tmp_path):
    url, _, source, _ = heard
    models = {
        "human": teacher("text"),
        "asr": teacher(source),
        "sound": teacher("text") | {"model": tiny.CONV},
    }
    values = tiny.recipe_values(tmp_path, url, models)
    with pytest.raises(UserError, match=f"training data of {source} are unknown"):
        strict = open_setting(load(str(tiny.write_recipe(tmp_path, values))))
        train(strict.recipe, Job(next(iter(strict.folds)), "asr", 0))
    setting = open_setting(load(str(tiny.write_recipe(tmp_path, values | {"allow_unknown": [source]}))))
    (fold,) = setting.folds
    for name in ("human", "asr"):
        train(setting.recipe, Job(fold, name, 0))
    told = {n: identity(setting, Job(fold, n, 0)).get("text") for n in models}
    assert set(told["asr"]) == {source} and told["human"] is None and told["sound"] is None
    meta = json.loads((directory(setting.recipe, Job(fold, "asr", 0)) / "model" / "model.json").read_text())[
        "meta"
    ]
    assert meta["text"] == told["asr"] and meta["exposure"]["unknown"] == [source]
    assert f"{source}: licence not stated" in meta["inherited"]
    assert teacher_spec(setting, Job(fold, "asr", 0)).fields["text"] == told["asr"]
    assert "text" not in teacher_spec(setting, Job(fold, "human", 0)).fields


def test_an_online_teacher_has_no_input_where_its_own_source_has_none(heard, tmp_path):
    """The corpus's transcripts say nothing of the recogniser's, and the other way round."""
    url, _, source, _ = heard
    values = tiny.recipe_values(tmp_path, url, {"asr": teacher(source)}, targets={"source": "online"})
    setting = open_setting(load(str(tiny.write_recipe(tmp_path, values | {"allow_unknown": [source]}))))
    (fold,) = setting.folds
    train(setting.recipe, Job(fold, "asr", 0))
    live = ask(setting, Job(fold, "asr", 0))
    kept = transcripts.read(setting.dataset, source)
    blank = kept.to_pylist()
    blank[3] = None
    transcripts._KEPT[setting.dataset][source] = pa.chunked_array([pa.array(blank, pa.string())])
    state = live.state(np.arange(5))
    transcripts._KEPT[setting.dataset][source] = kept
    assert setting.dataset.bits[3] & 8 and state[3] == NO_INPUT
    assert (state == PRESENT).tolist() == [bool(text) for text in blank[:5]]


def test_a_recognisers_transcripts_are_taken_over_from_tables(tmp_path):
    url = tiny.make_dataset(tmp_path, count=16)
    data, table = Dataset.open(url), tmp_path / "asr.tsv"
    keys = data.keys(np.arange(3))
    table.write_text(f"{keys[0]}\twhat was heard\n{keys[2].removeprefix('tiny-')}\tand more\n")
    for _ in range(2):
        transcripts.adopt(data, "asr:theirs", [str(table)])
    assert texts(data, "asr:theirs", np.arange(3)) == ["what was heard", None, "and more"]
    assert transcripts.due(data, "asr:theirs") == []
    for content, what in (
        ("z\tnobody\n", "fit no utterance"),
        ("", "is empty"),
        ("a b\n", "not key, tab, text"),
    ):
        table.write_text(content)
        with pytest.raises(UserError, match=what):
            transcripts.adopt(data, "asr:others", [str(table)])
    with pytest.raises(UserError, match="made otherwise"):
        transcripts.settle(data.store, "asr:theirs", {"model": "whisper"})
    with pytest.raises(UserError, match="ser transcribe"):
        texts(data, "asr:nobody", np.arange(2))
