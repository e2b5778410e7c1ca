"""Stored hidden states, probes of them, and encoders cut to their first layers."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ser import produce
from ser.job import Job, directory, identity
from ser.layers import layer_spec, layer_stores, layer_work
from ser.models import build, load
from ser.models.config import parse_config
from ser.recipe import Recipe
from ser.setting import open_setting
from ser.start import start_encoder
from ser.strict import validate
from ser.train import train
from shards.batch import load_slot
from shards.errors import UserError
from shards.loader import Needs
from shards.slots import Slot
from shards.targets import PRESENT, QUARANTINED, TargetStore
from tests import tiny

CCC = [{"loss": "ccc"}]


def models() -> dict:
    probe = {"kind": "probe", "encoder": "sound", "states": 3, "size": 16, "embedding": 8}
    few = tiny.training(2)
    return {
        "sound": {"role": "teacher", "layers": True, "model": tiny.HUBERT, "objective": CCC, "train": few},
        "first": {"role": "baseline", "model": probe | {"layer": 1}, "objective": CCC, "train": few},
        "sum": {
            "role": "baseline", "model": probe | {"layer": "weighted"},
            "objective": [*CCC, {"loss": "cross_entropy"}], "train": few,
        },
        "cut": {
            "role": "baseline", "encoder_from": "sound", "model": tiny.HUBERT | {"num_layers": 1},
            "objective": CCC, "train": few,
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layers")
    values = tiny.recipe_values(folder, tiny.make_dataset(folder), models())
    values["protocol"] |= {"select_metric": "ccc"}
    recipe = validate(Recipe, values, where="test")
    job = Job("session-ses0", "sound", 0)
    train(recipe, job)
    setting = open_setting(recipe)
    list(produce.serial(recipe, layer_work(setting, job)))
    return recipe, setting, job


@pytest.mark.slow
def test_stored_states_are_the_encoders_own(made):
    """Of train, dev and test rows, each the mean over true frames of every state; a second call has nothing to do."""
    recipe, setting, job = made
    assert not layer_work(setting, job)
    store = TargetStore.open(setting.dataset, expect=layer_spec(setting, job))
    model, _ = load(directory(recipe, job) / "model")
    for rows, view in ((setting.folds[job.fold].test, 0), (setting.folds[job.fold].train, 1)):
        slot = Slot(rows[:5], np.full(5, view, np.int64))
        batch = load_slot(setting.dataset, slot, Needs(waveform=True), setting.policy)
        with torch.inference_mode():
            wanted = model.layer_pooled(batch)
        torch.testing.assert_close(
            torch.from_numpy(store.read(slot.rows, slot.views)["layers"]), wanted, atol=1e-4, rtol=1e-4
        )
        # a probe's batch holds them as frames
        heard = load_slot(setting.dataset, slot, Needs(features={"layers": store}), setting.policy)
        torch.testing.assert_close(heard.features["layers"], wanted, atol=1e-4, rtol=1e-4)


def test_another_precision_of_stored_states_repeats_the_probes_alone(tmp_path, tiny_dataset):
    def identities(**targets) -> dict:
        values = tiny.recipe_values(tmp_path, tiny_dataset, models(), targets=targets)
        values["protocol"] |= {"select_metric": "ccc"}
        setting = open_setting(validate(Recipe, values, where="test"))
        return {name: identity(setting, Job("session-ses0", name, 0)) for name in models()}

    full, half = identities(), identities(dtype="float16")
    assert {name for name in full if full[name] != half[name]} == {"first", "sum"}


@pytest.mark.slow
def test_too_many_states_that_could_not_be_read_stop_the_run_at_every_call(made, monkeypatch):
    """Nothing is due any more, and a quarter of what a probe would read was given up."""
    _, setting, job = made
    spec = layer_spec(setting, job)
    lost = np.full(len(setting.dataset), PRESENT, np.uint8)
    lost[setting.folds[job.fold].test] = QUARANTINED
    store = SimpleNamespace(spec=spec, due=lambda rows, views: [], state=lambda rows, view: lost[rows])
    monkeypatch.setattr("ser.layers.TargetStore", SimpleNamespace(create=lambda dataset, spec: store))
    with pytest.raises(UserError, match="could not be read or answered, more than"):
        layer_work(setting, job)


@pytest.mark.slow
def test_probes_train_on_them_and_a_cut_encoder_starts_from_the_first_layers(made):
    recipe, setting, job = made
    for name in ("first", "sum", "cut"):
        folder = train(recipe, Job(job.fold, name, 0))
        probe, _ = load(folder / "model")
        if name == "sum":
            assert set(probe.shares()) == {"valence", "arousal", "dominance", "classes"}
            # every question has moved its own weights
            assert probe.weights.detach().unique(dim=0).shape[0] == 4
    assert set(layer_stores(setting, Job(job.fold, "first", 0))) == {"layers"}
    assert layer_stores(setting, Job(job.fold, "cut", 0)) == {}


@pytest.mark.slow
def test_a_probe_of_another_shape_is_refused(made):
    recipe, setting, job = made
    values = recipe.dump()
    values["models"]["first"]["model"]["states"] = 5
    other = copy.copy(setting)
    other.recipe = validate(Recipe, values, where="test")
    with pytest.raises(UserError, match="reads 5 states of 16 numbers, sound has 3 of 16"):
        layer_stores(other, Job(job.fold, "first", 0))


def test_encoders_of_other_shapes_do_not_start_from_each_other():
    small = build(parse_config(tiny.HUBERT), 0, True)
    wide = copy.deepcopy(tiny.HUBERT)
    wide["config"] |= {"hidden_size": 32}
    with pytest.raises(UserError, match="does not fit"):
        start_encoder(build(parse_config(wide), 0, True), small, "wide")
    one = build(parse_config(tiny.HUBERT | {"num_layers": 1}), 0, True)
    start_encoder(one, small, "one")
    first = {k: v for k, v in small.encoder.state_dict().items() if k in one.encoder.state_dict()}
    assert all(torch.equal(value, one.encoder.state_dict()[key]) for key, value in first.items())


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"sound": {"layers": False}}, "are not stored"),
        ({"first": {"encoder_from": "sound"}}, "acoustic"),
        ({"sum": {"layers": True}}, "only an acoustic model"),
        ({"cut": {"encoder_from": "nobody"}}, "no model of this recipe"),
        (
            {"cut": {"objective": [*CCC, {"loss": "embedding", "teacher": "first"}]}},
            "neither teacher nor component",
        ),
    ],
)
def test_what_cannot_be_probed_is_refused(tmp_path, change, what):
    entries = models()
    for name, more in change.items():
        entries[name] = entries[name] | more
    with pytest.raises(UserError, match=what):
        validate(Recipe, tiny.recipe_values(tmp_path, "x", entries), where="test")
