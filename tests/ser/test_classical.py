"""The classical rows: functionals of true samples, a fit that scikit-learn confirms, and a model like any other."""

import builtins

import numpy as np
import pytest
import torch

from ser import classical
from ser.features import functionals
from ser.finish import read_meta, read_predictions
from ser.job import Job, directory
from ser.metrics import nll, ua
from ser.models import build, load
from ser.models.config import ClassicalConfig
from ser.produce import feature_spec, feature_work, serial
from ser.recipe import Recipe
from ser.score import probabilities
from ser.setting import open_setting
from ser.strict import validate
from ser.train import train
from shards.errors import UserError
from shards.targets import TargetStore
from tests import tiny

FREE = {"kind": "classical", "features": "mfcc"}


def points(seed=0, classes=3, size=5, count=120):
    """Overlapping blobs with wildly different scales of their columns."""
    rng = np.random.default_rng(seed)
    truth = np.arange(count) % classes
    centres = rng.normal(0, 1.2, (classes, size))
    return (centres[truth] + rng.normal(0, 1, (count, size))) * 10.0 ** np.arange(size) + 7.0, truth


def blobs(classes=3):
    table, truth = points(classes=classes)
    return table[:80], truth[:80], table[80:], truth[80:], classes


@pytest.mark.parametrize("kind", functionals.SIZES)
def test_functionals_depend_on_true_samples_alone(kind):
    if kind == "egemaps":
        pytest.importorskip("opensmile", reason="extra opensmile is not installed")
    rng = torch.Generator().manual_seed(1)
    wave, lengths = 0.1 * torch.randn(4, 12000, generator=rng), torch.tensor([12000, 7000, 100, 0])
    table, there = functionals.extract(kind, wave, lengths)
    assert table.shape == (4, 1, functionals.SIZES[kind]) and table.isfinite().all()
    assert there.tolist() == [1, 1, 1, 0] and (table[3] == 0).all()
    alone, _ = functionals.extract(kind, wave[1:2, :7000], lengths[1:2])
    assert torch.equal(alone[0], table[1])


def test_mfcc_are_those_of_scipy():
    from scipy.fft import dct

    mel = np.random.default_rng(0).normal(size=(7, functionals.BANDS))
    want = dct(mel, type=2, norm="ortho")[:, : functionals.COEFFICIENTS]
    assert np.allclose(
        mel @ functionals.cosines(functionals.BANDS, functionals.COEFFICIENTS), want, atol=1e-12
    )


def test_without_opensmile_the_error_names_licence_and_install(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **keywords):
        if name == "opensmile":
            raise ImportError(name)
        return real(name, *args, **keywords)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match="openSMILE") as error:
        functionals.require_opensmile()
    assert "commercial" in str(error.value) and "pip install" in str(error.value)


@pytest.mark.parametrize("classifier", ["svm", "logistic"])
@pytest.mark.parametrize("classes", [2, 3])
def test_the_fit_is_scikit_learns(classifier, classes):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    train, truth, dev, dev_truth, _ = blobs(classes)
    config = ClassicalConfig(features="mfcc", classifier=classifier, grid=(0.3, 0.01, 1.0))
    (mean, deviation, weights, bias), tried = classical.choose(
        config, train, truth, dev, dev_truth, classes, 3
    )
    machines = {
        c: LinearSVC(C=c, class_weight="balanced", dual=True, max_iter=2000, random_state=3)
        if classifier == "svm"
        else LogisticRegression(C=c, class_weight="balanced", max_iter=2000)
        for c in config.grid
    }
    said = {c: make_pipeline(StandardScaler(), m).fit(train, truth).predict(dev) for c, m in machines.items()}
    assert tried == {c: pytest.approx(ua(dev_truth, said[c], classes)) for c in config.grid}
    best = min(c for c in tried if tried[c] == max(tried.values()))
    ours = ((dev - mean) / deviation) @ weights.T + bias
    assert (ours.argmax(1) == said[best]).all()
    # The scale is the best of its grid: any other makes dev less likely.
    here = nll(probabilities(ours), dev_truth)
    assert all(here <= nll(probabilities(ours * f), dev_truth) + 1e-9 for f in (0.5, 0.9, 1.1, 2.0))


def test_nothing_to_choose_by_is_refused():
    train, truth, dev, dev_truth, classes = blobs()
    with pytest.raises(UserError, match="no dev rows"):
        classical.choose(ClassicalConfig(), train, truth, dev[:0], dev_truth[:0], classes, 0)
    single = ClassicalConfig(grid=(0.1,))
    (_, _, weights, _), tried = classical.choose(single, train, truth, dev[:0], dev_truth[:0], classes, 0)
    assert tried == {} and weights.shape == (classes, 5)


def test_a_classical_model_needs_classes():
    with pytest.raises(UserError, match="has none"):
        build(FREE, 0, True)


@pytest.mark.parametrize(
    "models, match",
    [
        ({"m": {"role": "baseline", "model": FREE, "train": {"steps": 1}, "objective": [{"loss": "ccc"}]}}, "fitted at once"),
        (
            {
                "m": {"role": "teacher", "model": FREE},
                "s": {
                    "role": "student", "model": tiny.CONV, "train": {"steps": 1},
                    "objective": [{"loss": "kl", "teacher": "m"}],
                },
            },
            "clean utterance",
        ),
        ({"m": {"role": "baseline", "model": {**FREE, "grid": []}}}, "grid"),
        ({"m": {"role": "baseline", "model": {**FREE, "grid": [0.0]}}}, "grid"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(tmp_path, models, match):
    with pytest.raises(UserError, match=match):
        validate(Recipe, tiny.recipe_values(tmp_path, "nowhere", models), where="test")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """The free classical model fitted through `ser.train.train`, its functionals stored before."""
    folder = tmp_path_factory.mktemp("classical")
    values = tiny.recipe_values(
        folder, tiny.make_dataset(folder), {"lr": {"role": "baseline", "model": {**FREE, "classifier": "logistic"}}},
        features={"mfcc": {"kind": "mfcc"}},
    )  # fmt: skip
    recipe = validate(Recipe, values, where="test")
    setting = open_setting(recipe)
    list(serial(recipe, feature_work(setting)))
    job = Job(setting.recipe.folds[0], "lr", 0)
    return setting, job, train(recipe, job)


def test_functionals_are_stored_once_for_all_views(fitted):
    setting, _, _ = fitted
    assert feature_work(setting) == []
    store = TargetStore.open(setting.dataset, expect=feature_spec(setting, "mfcc"))
    fold = next(iter(setting.folds.values()))
    rows = np.sort(np.concatenate([fold.train, fold.dev, fold.test]))
    clean, view = (store.read(rows, np.full(len(rows), v))["mfcc"] for v in (0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(clean, view))
    direct, _ = functionals.extract(
        "mfcc", torch.from_numpy(setting.dataset.audio(rows[:1])[0])[None], torch.tensor([setting.dataset.samples[rows[0]]])
    )  # fmt: skip
    assert np.allclose(direct[0].numpy(), clean[0], rtol=1e-5, atol=1e-5)


def test_it_writes_what_every_training_writes(fitted):
    setting, job, folder = fitted
    fold = setting.folds[job.fold]
    assert folder == directory(setting.recipe, job) and (folder / "DONE").is_file()
    for split in ("dev", "test"):
        answers = read_predictions(folder / "predictions.parquet", split)
        assert np.array_equal(answers.rows, getattr(fold, split)) and answers.logits.shape[1] == 4
        # Pitch follows arousal in these tones (angry and happy come first); nothing tells those two apart.
        aroused = setting.labels.classes[answers.rows] < 2
        assert np.mean((answers.logits.argmax(1) < 2) == aroused) > 0.8
    meta = read_meta(folder)["meta"]
    heard = {setting.dataset.speakers[s] for s in np.unique(setting.dataset.speaker[fold.train])}
    assert set(meta["exposure"]["fit"]) == heard
    chosen = {setting.dataset.speakers[s] for s in np.unique(setting.dataset.speaker[fold.dev])}
    assert set(meta["exposure"]["select"]) == chosen
    assert set(meta["training"]["grid"]) == {"0.001", "0.003", "0.01", "0.03", "0.1"}
    assert not any("openSMILE" in licence for licence in meta["licences"])


def test_the_saved_model_answers_from_the_waveform_alone(fitted):
    from ser.inputs import complete, needs_of
    from shards.batch import load_slot
    from shards.slots import Slot

    setting, job, folder = fitted
    model, _ = load(folder / "model")
    rows = setting.folds[job.fold].test
    slot = Slot(rows, np.zeros(len(rows), np.int64))
    needs = needs_of(model, {})
    assert needs.waveform
    with torch.no_grad():
        said = model(complete(load_slot(setting.dataset, slot, needs, setting.policy), model)).logits.numpy()
    kept = read_predictions(folder / "predictions.parquet", "test").logits
    assert np.allclose(said, kept, rtol=1e-3, atol=1e-3)


def test_egemaps_carries_its_licence(fitted, tmp_path):
    pytest.importorskip("opensmile", reason="extra opensmile is not installed")
    setting, _, _ = fitted
    values = setting.recipe.dump() | {
        "run_dir": str(tmp_path / "run"),
        "features": {},
        "models": {"svm": {"role": "baseline", "model": {"kind": "classical", "grid": [0.01]}}},
    }
    recipe = validate(Recipe, values, where="test")
    folder = train(recipe, Job(setting.recipe.folds[0], "svm", 0))
    assert functionals.OPENSMILE_LICENCE in read_meta(folder)["meta"]["licences"]
