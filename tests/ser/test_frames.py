"""Frozen encoders that run once: stored frames, live frames, who heard what, and conditions, over one small run."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch

from ser import produce
from ser.bill import bill as bill_of
from ser.conditions import due, policy_of
from ser.exposure import of_rows
from ser.finish import read_predictions
from ser.frames import attach, compute_frames, frame_spec, frame_work, refuse_full_disk
from ser.infer import answer
from ser.inputs import complete, needs_of
from ser.job import Job, directory
from ser.models import load
from ser.predict import predict
from ser.recipe import Recipe
from ser.setting import open_setting
from ser.strict import validate
from shards.batch import load_slot
from shards.errors import UserError
from shards.loader import Needs
from shards.slots import Slot
from shards.targets import ABSENT, PRESENT, TargetStore
from tests import tiny

pytest.importorskip("deepspeed")

FOLD = "session-ses0"
SPEECH = {**tiny.HUBERT, "kind": "speech"}
TC = {"kind": "tcgru", "streams": {"ear": {}}, "width": 8, "embedding": 8}
CCC = [{"loss": "ccc", "mix": {"valence": 0.5, "arousal": 0.3, "dominance": 0.2}}]
MODELS = {
    "ear": {
        "role": "encoder", "model": SPEECH, "objective": [{"loss": "ctc"}], "train": tiny.training(3),
        "frames": {"layer": 1, "dtype": "float16"},
    },
    "mfb": {
        "role": "baseline", "objective": CCC, "train": tiny.training(),
        "model": {**TC, "streams": {"mel": {"stack": 2, "normalise": "fitted"}}, "bands": 20, "features": "stored"},
    },
    "heard": {"role": "teacher", "model": TC, "objective": CCC, "train": tiny.training()},
    "both": {
        "role": "teacher", "objective": CCC, "train": tiny.training(),
        "model": {"kind": "fused", "frozen": False, "components": {"speech": TC, "text": tiny.BERT}, "embedding": 8},
    },
    "distilled": {
        "role": "student", "train": tiny.training(),
        "model": {**TC, "streams": {"mel": {"stack": 2}}, "bands": 20, "features": "stored"},
        "objective": [*CCC, {"loss": "embedding", "teacher": "both", "distance": "mse", "projector": "none"}],
    },
}  # fmt: skip
CONDITIONS = {"snr5": {"noise": "synthetic", "snr_db": [5, 5]}, "quiet": {}}


def values_of(folder, dataset, models=MODELS, **changes):
    values = tiny.recipe_values(folder, dataset, copy.deepcopy(models), **changes)
    values["protocol"]["select_metric"] = "ccc"
    values["features"] = {"mel": {"kind": "mel", "options": {"bands": 20}}}
    values["report"] = {
        "conditions": CONDITIONS,
        "compare": [
            {
                "system": "heard",
                "reference": "mfb",
                "metric": "ccc_valence",
                "published": 0.79,
                "source": "them",
            }
        ],
    }
    return values


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from shards.store import Store
    from tests.whole import run_here

    folder = tmp_path_factory.mktemp("frames")
    tiny.write_corpus(folder)
    values = values_of(folder, str(folder / "dataset"))
    values["data"]["shard_seconds"] = 8
    recipe = validate(Recipe, values, where="test")
    lines = run_here(recipe)
    assert Store(recipe.data.path).exists("dataset.json")
    return open_setting(recipe), lines


def job(name: str) -> Job:
    return Job(FOLD, name, 0)


def store_of(setting) -> TargetStore:
    return TargetStore.open(setting.dataset, expect=frame_spec(setting, job("ear")))


@pytest.mark.slow
def test_the_run_has_every_row_and_a_second_one_makes_nothing(run):
    from tests.whole import run_here

    setting, lines = run
    report = json.loads((setting.recipe.directory / "report.json").read_text())
    assert report["order"] == ["mfb", "heard", "both", "distilled"] and not report["incomplete"]
    assert report["encoders"]["ear"]["read_by"] == ["heard", "both"]
    assert report["models"]["heard"]["encoder_parameters"] == {"ear": report["encoders"]["ear"]["parameters"]}
    page = (setting.recipe.directory / "report.html").read_text()
    for text in ("+79 %", "Robustness", "snr5", "Frozen encoders", "was not reproduced here"):
        assert text in page
    assert sum(line.stage.startswith("frames") for line in lines) == 1
    assert all(line.made == 0 for line in run_here(setting.recipe))


@pytest.mark.slow
def test_frames_lie_there_for_what_the_fold_reads_and_for_nothing_else(run):
    setting, _ = run
    store, fold = store_of(setting), setting.folds[FOLD]
    every = np.arange(len(setting.dataset))
    clean = np.zeros(len(every), bool)
    clean[fold.dev] = clean[fold.test] = True
    assert (store.state(every, 0) == np.where(clean, PRESENT, ABSENT)).all()
    assert (store.state(every, 1) == np.where(np.isin(every, fold.train), PRESENT, ABSENT)).all()
    assert not frame_work(setting, job("ear"))


@pytest.mark.slow
def test_stored_frames_are_those_of_the_encoder_alone(run):
    """The chosen layer's hidden states as transformers gives them for a row without padding."""
    setting, _ = run
    encoder, _ = load(directory(setting.recipe, job("ear")) / "model")
    import transformers

    stock = transformers.HubertModel(encoder.encoder.config).eval()
    stock.load_state_dict(encoder.encoder.state_dict())
    for row, view in ((setting.folds[FOLD].test[0], 0), (setting.folds[FOLD].train[3], 1)):
        at, views = np.array([row]), np.array([view])
        (stored,) = store_of(setting).read(at, views)["frames"]
        batch = load_slot(setting.dataset, Slot(at, views), Needs(waveform=True), setting.policy)
        wave = batch.waveform
        wave = (wave - wave.mean()) / (wave.var(unbiased=False) + 1e-7).sqrt()
        with torch.no_grad():
            hidden = stock(wave, output_hidden_states=True).hidden_states[1][0]
        assert stored.dtype == np.float16 and stored.shape == hidden.shape
        np.testing.assert_allclose(stored, hidden.numpy(), atol=2e-3, rtol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["heard", "both"])
def test_frames_on_the_spot_give_the_answers_of_stored_ones(run, name):
    setting, _ = run
    folder = directory(setting.recipe, job(name))
    model, meta = load(folder / "model")
    attach(model, folder / "model", meta)
    from ser.distributed import World

    rows = setting.folds[FOLD].test
    live = answer(
        model, setting.dataset, rows, policy=setting.policy, features={}, slot_seconds=3.0,
        world=World(0, 1, 0, torch.device("cpu")),
    )  # fmt: skip
    stored = read_predictions(folder / "predictions.parquet", "test")
    assert (stored.rows == rows).all() and (live.state == PRESENT).all()
    np.testing.assert_allclose(live.dimensions, stored.dimensions, atol=2e-3)


@pytest.mark.slow
def test_what_the_encoder_heard_counts_for_who_reads_it(run):
    setting, _ = run
    fold = setting.folds[FOLD]
    for name in ("ear", "heard", "both", "distilled"):
        facts = json.loads((directory(setting.recipe, job(name)) / "model" / "model.json").read_text())
        assert set(facts["meta"]["exposure"]["fit"]) == of_rows(setting.dataset, fold.train)
        assert not set(facts["meta"]["exposure"]["fit"]) & of_rows(setting.dataset, fold.test)
    assert frame_spec(setting, job("ear")).fields["exposure"]["fit"] == sorted(
        of_rows(setting.dataset, fold.train)
    )


@pytest.mark.slow
def test_an_encoder_that_heard_a_test_speaker_is_refused(run, tmp_path, monkeypatch):
    from ser import build, taught

    setting, _ = run
    told = taught.load_meta

    def leaking(folder):
        meta = copy.deepcopy(told(folder))
        if meta["name"] == "ear":
            meta["exposure"]["fit"] += sorted(of_rows(setting.dataset, setting.folds[FOLD].test))
        return meta

    monkeypatch.setattr(taught, "load_meta", leaking)
    from ser.distributed import join

    with pytest.raises(UserError, match=r"tiny/s[01]"):
        build.gather_ingredients(setting, job("heard"), join())


@pytest.mark.slow
def test_a_unit_made_again_has_the_same_bytes(run):
    setting, _ = run
    rows = setting.folds[FOLD].test
    shard = int(setting.dataset.shard[rows[0]])
    mine = rows[np.asarray(setting.dataset.shard)[rows] == shard]
    before = [x.copy() for x in store_of(setting).read(mine, 0)["frames"]]
    compute_frames(setting, produce.Work(job("ear"), shard, 0, {"ear": mine}))
    for old, new in zip(before, store_of(setting).read(mine, 0)["frames"]):
        np.testing.assert_array_equal(old, new)


@pytest.mark.slow
def test_the_bill_is_what_the_files_take_and_a_full_disk_is_refused(run):
    setting, _ = run
    rows = np.sort(np.concatenate([setting.folds[FOLD].test, setting.folds[FOLD].dev]))
    bill = bill_of(setting, [produce.Work(job("ear"), 0, 0, {"ear": rows})])
    taken = sum(x.nbytes for x in store_of(setting).read(rows, 0)["frames"])
    assert bill.bytes == pytest.approx(taken, rel=0.1) and bill.bytes >= taken
    with pytest.raises(UserError, match=r"stored takes .* GB .* free"):
        refuse_full_disk(setting, 10**18)


@pytest.mark.slow
def test_a_student_is_told_which_encoder_it_lacks(run, tmp_path):
    setting, _ = run
    folder = directory(setting.recipe, job("heard"))
    wav = next((setting.recipe.directory.parent / "wav").glob("*.wav"))
    (near,) = predict(str(folder), [str(wav)])
    assert set(near["dimensions"]) == {"valence", "arousal", "dominance"}
    alone = tmp_path / "alone"
    shutil.copytree(folder / "model", alone)
    with pytest.raises(UserError, match="reads frames of the encoder ear, and it is not at hand") as caught:
        list(predict(str(alone), [str(wav)]))
    assert str(alone / "encoders" / "ear") in caught.value.hint
    shutil.copytree(directory(setting.recipe, job("ear")) / "model", alone / "encoders" / "ear")
    assert list(predict(str(alone), [str(wav)])) == [near]
    facts = json.loads((alone / "encoders" / "ear" / "model.json").read_text())
    facts["files"]["model.safetensors"] = "0" * 64
    (alone / "encoders" / "ear" / "model.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="another encoder lies there now"):
        list(predict(str(alone), [str(wav)]))


@pytest.mark.slow
def test_conditions_are_heard_alike_and_made_again_when_they_change(run):
    setting, _ = run
    assert not due(setting)
    heard = {
        name: read_predictions(directory(setting.recipe, job("mfb")) / f"conditions/{name}.parquet", "test")
        for name in CONDITIONS
    }
    clean = read_predictions(directory(setting.recipe, job("mfb")) / "predictions.parquet", "test")
    np.testing.assert_allclose(heard["quiet"].dimensions, clean.dimensions, atol=1e-4)
    assert np.abs(heard["snr5"].dimensions - clean.dimensions).max() > 1e-3
    # the model alone, utterance by utterance, under the very same view
    policy, rows = policy_of(setting, "snr5"), setting.folds[FOLD].test
    model, _ = load(directory(setting.recipe, job("mfb")) / "model")
    for i in (0, len(rows) - 1):
        slot = Slot(rows[i : i + 1], np.ones(1, np.int64))
        batch = complete(load_slot(setting.dataset, slot, needs_of(model, {}), policy), model)
        with torch.no_grad():
            said = model(batch).dimensions.numpy()[0]
        np.testing.assert_allclose(said, heard["snr5"].dimensions[i], atol=1e-4)
    louder = setting.recipe.model_dump()
    louder["report"]["conditions"]["snr5"]["snr_db"] = [0, 0]
    changed = open_setting(validate(Recipe, louder, where="test"))
    assert {(item.name, len(item.jobs)) for item in due(changed)} == {("snr5", 4)}
    with pytest.raises(UserError, match="one view"):
        louder["report"]["conditions"]["snr5"]["count"] = 2
        policy_of(open_setting(validate(Recipe, louder, where="test")), "snr5")


@pytest.mark.slow
def test_another_layer_makes_other_frames_and_trains_only_who_reads_them(run):
    from ser.job import identity

    setting, _ = run
    values = setting.recipe.model_dump()
    values["models"]["ear"]["frames"] = {"layer": 2, "dtype": "float16"}
    changed = open_setting(validate(Recipe, values, where="test"))
    same = {n: identity(setting, job(n)) == identity(changed, job(n)) for n in setting.recipe.models}
    assert same == {"ear": True, "mfb": True, "heard": False, "both": False, "distilled": False}
    with pytest.raises(UserError, match=r"layer: stored 1, wanted 2"):
        store_of(changed)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m["ear"].update(role="teacher"), "role encoder and kind speech belong together"),
        (lambda m: m["ear"].update(objective=[], train=None), "nothing trains its random weights"),
        (lambda m: m["heard"].update(objective=[{"loss": "ctc"}]), "an encoder learns by ctc"),
        (lambda m: m["heard"]["model"]["streams"].update(mfb={}), "no encoder"),
        (lambda m: m["heard"]["model"]["streams"].update(eer={}), "did you mean 'ear'"),
        (lambda m: m["distilled"]["objective"][1].update(teacher="ear"), "an encoder, as something else"),
        (lambda m: m["heard"].update(cross_fit=2), "through the encoder ear"),
        (lambda m: m["ear"]["train"].update(patience=3), "not chosen by a dev metric"),
    ],
)
def test_what_the_recipe_refuses(tmp_path, change, match):
    models = copy.deepcopy(MODELS)
    change(models)
    with pytest.raises(UserError, match=match):
        validate(Recipe, values_of(tmp_path, "nowhere", models), where="test")


@pytest.mark.slow
def test_embeddings_of_unequal_sizes_need_a_projector(run):
    from ser.build import gather_ingredients
    from ser.distributed import join

    setting, _ = run
    values = setting.recipe.model_dump()
    values["models"]["distilled"]["model"]["embedding"] = 5
    changed = open_setting(validate(Recipe, values, where="test"))
    with pytest.raises(UserError, match="has 8 numbers, the student's 5"):
        gather_ingredients(changed, job("distilled"), join())


@pytest.mark.slow
def test_a_pretrained_encoder_stays_as_it_is_and_is_unknown(run, tmp_path):
    transformers = pytest.importorskip("transformers")
    from ser.train import train

    setting, _ = run
    shape = transformers.HubertConfig.from_dict(dict(tiny.HUBERT["config"]))
    transformers.HubertModel(shape).save_pretrained(tmp_path / "hub")
    values = setting.recipe.model_dump()
    values["run_dir"] = str(tmp_path / "run")
    speech = {"kind": "speech", "name": str(tmp_path / "hub")}
    values["models"] = {"ear": {"role": "encoder", "model": speech}, "heard": values["models"]["heard"]}
    values["report"] = {}
    recipe = validate(Recipe, values, where="test")
    with pytest.raises(UserError, match="unknown"):
        train(recipe, job("ear"))
    values["allow_unknown"] = [str(tmp_path / "hub")]
    recipe = validate(Recipe, values, where="test")
    folder = train(recipe, job("ear"))
    facts = json.loads((folder / "model" / "model.json").read_text())
    assert facts["meta"]["exposure"]["fit"] == [] and facts["meta"]["exposure"]["unknown"] == [
        str(tmp_path / "hub")
    ]
    changed = open_setting(recipe)
    for item in frame_work(changed, job("ear")):
        produce.compute(recipe, item)
    heard = json.loads((train(recipe, job("heard")) / "model" / "model.json").read_text())
    assert heard["meta"]["exposure"]["unknown"] == [str(tmp_path / "hub")]
