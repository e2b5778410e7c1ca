"""The protocols that come with the package against the corpora: the real ones' labels, and rows as readers of licensed ones give them."""

import numpy as np
import pytest

from ser.protocol import folds, inspect, labels, load_protocol
from shards.corpora import read
from shards.errors import UserError
from shards.pack import pack
from tests.ser.small_dataset import packed


def who(data, rows):
    return {data.speakers[c].split("/")[1] for c in np.unique(data.speaker[rows]) if c >= 0}


@pytest.fixture(scope="module")
def real(tmp_path_factory, corpora):
    """EmoDB, RAVDESS and URDU: names and labels are the corpora's, the audio is a stub (folds never read it)."""
    import dataclasses

    import soundfile as sf

    folder = tmp_path_factory.mktemp("real")
    every = []
    for name in ("emodb", "ravdess", "urdu", "nemo"):
        for i, utterance in enumerate(read(name, str(corpora / name), counts="ignore")):
            stub = folder / f"{i % 50}.wav"
            if not stub.exists():
                sf.write(stub, np.random.default_rng(i).normal(0, 0.1, 160), 16000)
            every.append(dataclasses.replace(utterance, audio=str(stub), duration=None, start=None, end=None))
    return pack(every, str(folder / "data"))


@pytest.mark.slow
def test_emoboxs_folds_of_emodb_are_refused_by_name(real, corpora, monkeypatch):
    monkeypatch.setenv("SER_CORPORA", str(corpora))
    with pytest.raises(UserError) as error:
        folds(load_protocol("emodb-emobox"), real)
    text = str(error.value)
    assert "STRICT" in text and "emodb-emobox" in text and "5 folds of 5 leak" in text
    assert all(f"emodb/{s}" in text for s in ("03", "08", "09", "10", "11", "12", "13", "14", "15", "16"))
    legacy = load_protocol("emodb-emobox-legacy")
    made = folds(legacy, real)
    assert [len(f.test) for f in made] == [107] * 5
    assert sum(f.kind == "speakers" for f in inspect(legacy, real, made)) >= 5


@pytest.mark.slow
def test_open_protocols_hold_on_the_real_corpora(real, corpora, monkeypatch):
    monkeypatch.setenv("SER_CORPORA", str(corpora))
    sizes = {"emodb-loso": (10, 535), "ravdess-6fold": (6, 1440), "urdu": (5, 400), "nemo": (9, 1240)}
    for name, (count, total) in sizes.items():
        chosen = load_protocol(name)
        made = folds(chosen, real)
        assert len(made) == count and sum(len(f.test) for f in made) == total
        truth = labels(chosen, real)
        if name == "ravdess-6fold":
            for fold in made:
                assert set(truth.classes[fold.test]) == set(truth.classes[fold.dev]) == set(range(8))
                genders = real.fields(["gender"], fold.dev)["gender"].to_pylist()
                assert set(genders) == {"female", "male"}
    kinds = {f.kind for f in inspect(load_protocol("urdu"), real, folds(load_protocol("urdu"), real))}
    assert {"speaker confound", "empty classes"} <= kinds  # four speakers hold all that is angry
    emodb = load_protocol("emodb-loso")
    found = inspect(emodb, real, folds(emodb, real))
    assert "text says nothing" in {f.kind for f in found} and "texts" in {f.kind for f in found}


@pytest.mark.slow
def test_ravdess_folds_are_emoboxs(real, corpora, monkeypatch):
    """The listed groups against EmoBox's own files: every file of a test actor is in that fold's list."""
    from shards.corpora import emobox

    lists = emobox.folds(corpora / "emobox" / "ravdess")
    for fold, stems in zip(folds(load_protocol("ravdess-6fold"), real), lists.values(), strict=True):
        actors = {stem.rsplit("-", 1)[1] for stem in stems}
        assert who(real, fold.test) == actors


def test_licensed_protocols_fit_their_readers_fields(tmp_path):
    """Rows as the readers of these corpora give them, labels of the release included."""
    rows = []
    for session in range(1, 6):
        for i, label in enumerate(["ang", "hap", "exc", "neu", "sad", "fru", "xxx"]):
            for gender in "FM":
                rows.append(
                    {
                        "corpus": "iemocap",
                        "speaker": f"Ses0{session}{gender}",
                        "session": f"Ses0{session}",
                        "recording": f"Ses0{session}F_impro0{i % 2}",
                        "label": label,
                    }
                )
    for part, label, speaker in zip(
        ["Train"] * 20 + ["Development"] * 10 + ["Test1"] * 10 + ["Test2"] * 2,
        "ASHUFDCNOX" * 5,
        range(42),
        strict=False,
    ):
        rows.append(
            {
                "corpus": "msppodcast",
                "speaker": None if speaker % 5 == 0 else f"{speaker}",
                "session": part,
                "recording": "shared" if speaker in (3, 25, 33) else f"pod{speaker}",
                "label": label,
                "valence": 4.0,
                "arousal": 1.0,
                "dominance": 7.0,
                "scale": (1, 7),
            }
        )
    for actor in range(20):
        for label in ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD"):
            gender = "female" if actor < 10 else "male"
            rows.append({"corpus": "cremad", "speaker": f"{1001 + actor}", "label": label, "gender": gender})
    for i, split in enumerate(["train"] * 8 + ["dev"] * 4 + ["test"] * 4):
        rows.append(
            {
                "corpus": "spokenaffect",
                "speaker": f"{split}{i % 2}",
                "label": ["angry", "happy", "sad", "calm"][i % 4],
                "extra": {"split": split, "clean_label": "calm"},
            }
        )
    data = packed(tmp_path, rows)
    made = folds(load_protocol("iemocap-5fold"), data)
    assert len(made) == 5 and who(data, made[4].dev) == {"Ses01F", "Ses01M"}
    assert len(made[0].test) == 10 and len(made[0].train) == 30
    ten = folds(load_protocol("iemocap-10fold"), data)
    assert len(ten) == 10 and who(data, ten[1].test) == {"Ses01M"} and "Ses01F" not in who(data, ten[1].train)
    (msp,) = folds(load_protocol("msp-podcast"), data)
    assert (len(msp.train), len(msp.dev), len(msp.test)) == (19, 9, 10)  # one each is on the test's podcast
    truth = labels(load_protocol("msp-podcast"), data)
    assert truth.dimensions[msp.test] == pytest.approx(np.tile([0.5, 0.0, 1.0], (10, 1)))
    actors = folds(load_protocol("cremad"), data)
    for fold in actors:
        assert {int(s) < 1011 for s in who(data, fold.test)} == {True, False} and len(
            who(data, fold.dev)
        ) == 2
    (spoken,) = folds(load_protocol({"extends": "spokenaffect", "labelled": 6}), data)
    assert (len(spoken.train), len(spoken.labelled), len(spoken.dev), len(spoken.test)) == (8, 6, 4, 4)
    clean = labels(load_protocol("spokenaffect").model_copy(update={"label_from": "extra.clean_label"}), data)
    assert set(clean.classes[spoken.test]) == {3}
