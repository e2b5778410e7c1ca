"""`ser plan`: exact where it says so, and set beside what a run really took."""

import json
import os
import time
from pathlib import Path

import pytest
from pydantic import TypeAdapter

import ser
from launch.display import Display
from launch.planned import beside, spent
from launch.planning import Asked, make, show, stated_speeds
from ser import throughput
from ser.activations import activations, batch_of, saved_bytes
from ser.amounts import FOLDS, stated
from ser.capacity import GIB, Need, hollow, states
from ser.estimate import RUNTIME, Time, gpu_bytes, makespan, memory, mending, wall
from ser.job import jobs
from ser.models.config import ModelConfig
from ser.recipe import load
from ser.setting import open_setting
from ser.training import TrainConfig
from shards.errors import UserError
from tests import tiny
from tests.whole import run_here

FOLDER = Path(ser.__file__).parent / "recipes"
QUIET = Display(quiet=True)


def models(**train) -> dict:
    """A teacher that hears, one that reads, and a student of both."""
    learns = [{"loss": "cross_entropy"}]
    return {
        "speech": {"role": "teacher", "model": tiny.CONV, "objective": learns, "train": tiny.training(8, **train)},
        "text": {"role": "teacher", "model": {**tiny.BERT, "vocabulary": 8}, "objective": learns, "train": tiny.training(8, **train)},
        "student": {
            "role": "student", "model": tiny.CONV, "train": tiny.training(8, **train),
            "objective": [*learns, {"loss": "multi_kl", "teachers": ["speech", "text"]}],
        },
    }  # fmt: skip


def recipe_of(folder: Path, dataset: str, **changes):
    return load(str(tiny.write_recipe(folder, tiny.recipe_values(folder, dataset, models(**changes)))))


def size(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern) if path.is_file())


NEED = Need("big", 10**9, 10**9, 0, 0, 0, 0)
BF16 = TrainConfig(steps=1, precision="bf16", slots=8, slot_seconds=64)


def test_memory_adds_states_activations_and_buckets():
    alone = memory(NEED, BF16, 1, 100e6)
    assert alone.states == 16 * 10**9 and alone.activations == 50_000_000 * 64 and not alone.buckets
    shared = memory(NEED, BF16.model_copy(update={"zero_stage": 2}), 8, 100e6)
    assert shared.states == 2 * 10**9 + 14 * 10**9 // 8 or abs(shared.states - 3.75e9) < 8
    assert shared.buckets == 2 * 500_000_000
    offloaded = memory(NEED, BF16.model_copy(update={"zero_stage": 2, "offload": "optimizer"}), 8, 100e6)
    assert offloaded.states == 2 * 10**9 and offloaded.states + offloaded.host == shared.states
    assert alone.total == alone.states + alone.activations + RUNTIME


def test_fp32_weights_are_copied_in_the_middle_stages_only():
    """DeepSpeed 0.19 clones its master weights in stages 1 and 2 whatever their type."""
    assert [states(100, 100, stage, 1, fp32=True) for stage in range(4)] == [1600, 2000, 2000, 1600]


def test_what_does_not_fit_is_mended_without_changing_results_first():
    room = 12 * 10**9
    assert mending(NEED, BF16, 10e6, 1e6, 100 * GIB, 8) == []
    knobs = mending(NEED, BF16, 10e6, 1e6, room, 8)
    assert knobs and all(
        knob.split("=")[0] in ("train.workers", "train.zero_stage", "train.offload") for knob in knobs
    )
    heavy = mending(NEED, BF16, 800e6, 100e6, room, 8)
    assert heavy and "model.gradient_checkpointing=true" in heavy
    none = mending(NEED, BF16, 800e6, 800e6, room, 8)
    assert none and any(knob.startswith("train.slot_seconds=") for knob in none)
    slots = {knob.split("=")[0]: float(knob.split("=")[1]) for knob in none if "slot" in knob}
    assert slots["train.slots"] * slots["train.slot_seconds"] == BF16.slots * BF16.slot_seconds
    assert mending(NEED, BF16, 10e6, 1e6, 10**6, 8) is None


def test_unknown_gpus_and_speeds_are_refused(tmp_path):
    assert gpu_bytes("H100") == int(79.5 * GIB) and gpu_bytes("48") == 48 * GIB
    with pytest.raises(UserError, match="no GPU 'h1000'"):
        gpu_bytes("h1000")
    recipe = recipe_of(tmp_path, str(tmp_path / "none"))
    assert stated_speeds(recipe, ["student=900", "30"]) == {"student": 900.0, "": 30.0}
    for wrong in ("student=fast", "studnt=3", "0"):
        with pytest.raises(UserError, match="is not"):
            stated_speeds(recipe, [wrong])
    with pytest.raises(UserError, match="hours"):
        stated(recipe, 0.0)


def test_hours_are_those_of_the_schedule():
    """Trainings wait for all of their workers, and a stage for the one before."""
    hour = 3600.0
    fifteen = Time("teacher", 15, 0, 15 * 8 * hour, 0.0, ((8, hour),) * 15)
    assert wall([[fifteen]], 64) == 2 * hour and wall([[fifteen]], 8) == wall([[fifteen]], 15) == 15 * hour
    assert wall([[fifteen], [fifteen]], 64) == 4 * hour, "a wave waits for the one before"
    small = Time("student", 3, 0, 3 * hour, 64 * hour, ((1, hour),) * 3)
    assert wall([[small, fifteen]], 64) == (1 + 2 + 1) * hour, "one worker, several, targets"
    assert makespan([(8, 2.0), (4, 3.0), (2, 1.0)], 12) == 3.0, (
        "the small one follows the large one beside the middle one"
    )
    assert makespan([(4, 1.0), (4, 1.0), (2, 2.0)], 6) == 2.0
    assert makespan([(4, 1.0), (4, 1.0), (2, 2.0)], 5) == 4.0 and makespan([], 4) == 0.0
    too_wide = Time("wide", 1, 0, 16 * hour, 0.0, ((16, hour),))
    assert wall([[too_wide]], 8) == 2 * hour
    assert wall([[Time("unknown", 1, 0, None, 0.0, ((1, float("nan")),))]], 8) is None


def test_the_plan_counts_workers_of_a_recipe(tmp_path, capsys):
    hours = {}
    for workers in (1, 4):
        folder = tmp_path / str(workers)
        folder.mkdir()
        recipe = recipe_of(folder, str(folder / "none"), workers=workers, slots=4)
        asked = Asked(gpus_per_node=6, gpu="h100", hours=10, folds=3, speed=["100"])
        made = show(recipe, asked, Display(quiet=True))
        assert {w for wave in made.waves for one in wave for w, _ in one.each} == {workers}
        hours[workers] = wall(made.waves, 6)
        assert hours[workers] is not None
    # two waves of 2 and 1 models in 3 folds, all equally long: six at once and three at once, or one at a time on four of six
    train = sum(one.train or 0 for wave in made.waves for one in wave)
    answers = sum(one.answers or 0 for wave in made.waves for one in wave) / 6
    assert hours[4] - answers == pytest.approx(train / 4, rel=1e-6)
    assert hours[1] - answers == pytest.approx(train / 9 * 2, rel=1e-6)


def test_a_plan_without_data_needs_only_hours_and_speeds(tmp_path, capsys):
    recipe = recipe_of(tmp_path, str(tmp_path / "none"), workers=4, slots=4)
    show(recipe, Asked(gpus_per_node=2, gpu="h100"), Display())
    told = capsys.readouterr().out
    assert "bf16 to answer" in told and "--hours 100" in told  # the table of parameters comes first
    assert "models.student.train.workers=2" in told
    made = show(recipe, Asked(gpu="h100", hours=10, folds=FOLDS, speed=["100"], price=2.0), Display())
    told = capsys.readouterr().out
    assert "from the hours stated" in told and "at 2 an hour and GPU" in told
    assert len(made.steps) == 3 * FOLDS and made.amount is not None and not made.amount.counted
    assert next(one.bytes for one in made.stored if one.what == "shards") == 10 * 3600 * 32000 * 0.65


RECIPES = sorted(
    str(path.relative_to(FOLDER).with_suffix("")).removesuffix("/recipe")
    for path in FOLDER.rglob("*.yaml")
    if "chosen" not in path.relative_to(FOLDER).parts
)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_of_the_package_can_be_planned_before_it_has_any_data(
    name, tmp_path, monkeypatch, capsys
):
    for corpus in ("SER_CORPORA", "IEMOCAP", "MSP_PODCAST", "MSP_PODCAST_ASR", "FESC", "CAFE"):
        monkeypatch.setenv(corpus, str(tmp_path))
    recipe = load(name, [f"data.path={tmp_path / 'none'}", f"run_dir={tmp_path / 'run'}"])
    made = show(recipe, Asked(2, 8, "h100", hours=400, folds=5, speed=["300"], price=2.0), Display())
    told = capsys.readouterr().out
    networks = {name for name, entry in recipe.models.items() if not entry.classical}
    assert {need.name for need in made.needs} == networks and all(name in told for name in networks)
    assert all(need.parameters for need in made.needs)
    assert "from the hours stated" in told and made.stored
    if name.endswith("/full"):
        assert max(need.parameters for need in made.needs) > 90e6, "the size of the papers' encoders"
    assert not list(tmp_path.iterdir()), "a plan makes nothing"


@pytest.mark.slow
def test_what_was_counted_is_freed():
    """A graph that keeps an output of its own node would stay for ever, and a plan counts dozens."""
    model = hollow(TypeAdapter(ModelConfig).validate_python(tiny.HUBERT), 4, True).train()
    counted = saved_bytes(model, batch_of(model, 8, 20.0))
    assert counted > 30e6
    before = Path("/proc/self/statm").read_text().split()[1]
    for _ in range(4):
        assert saved_bytes(model, batch_of(model, 8, 20.0)) == counted
    pages = int(Path("/proc/self/statm").read_text().split()[1]) - int(before)
    assert pages * os.sysconf("SC_PAGE_SIZE") < 2 * counted


def test_layers_keep_what_the_second_one_does(tmp_path, monkeypatch):
    """Counted on one and two layers, once each, and the same as on the whole model; recomputing keeps less."""
    deep = {**tiny.HUBERT, "config": {**tiny.HUBERT["config"], "num_hidden_layers": 5}}
    learns = {"role": "teacher", "objective": [{"loss": "cross_entropy"}], "train": tiny.training(2)}
    made = {
        "plain": {**learns, "model": deep},
        "lighter": {**learns, "model": {**deep, "gradient_checkpointing": True}},
    }
    values = tiny.recipe_values(tmp_path, str(tmp_path / "none"), made)
    recipe = load(str(tiny.write_recipe(tmp_path, values)))
    model = hollow(recipe.models["plain"].model, 4, False).train()
    whole = saved_bytes(model, batch_of(model, 1, 2.0))
    counted = []
    monkeypatch.setattr("ser.activations._COUNTED", {})
    monkeypatch.setattr(
        "ser.activations.saved_bytes", lambda *given: counted.append(1) or saved_bytes(*given)
    )
    assert activations(recipe, "plain", 2.0) * 2.0 == pytest.approx(whole, rel=0.01)
    assert activations(recipe, "lighter", 2.0) < 0.7 * activations(recipe, "plain", 2.0)
    assert len(counted) == 2


@pytest.mark.slow
def test_the_plan_beside_a_real_run(tmp_path, capsys, record_property):
    """Disk within 10 %, states to the byte; the error of time is printed and never fails."""
    tiny.write_corpus(tmp_path)
    recipe = recipe_of(tmp_path, str(tmp_path / "dataset"), checkpoint_every=3)
    run_here(recipe, until="pack")
    made = make(recipe, Asked(gpus_per_node=1, measure=True), QUIET)
    assert made.amount is not None and made.amount.counted
    figures = throughput.read(recipe.directory / throughput.NAME)
    assert (
        make(recipe, Asked(gpus_per_node=1), QUIET).waves == made.waves
    )  # later plans read what was measured

    for need in made.needs:
        figure = throughput.find(figures, throughput.key(recipe, need.name), None)
        assert figure is not None and figure.train and figure.answer
        assert figure.states == states(need.parameters, need.trainable, 0, 1, fp32=True) == need.training, (
            need.name
        )
    assert throughput.find(figures, "audio", "no such machine") is None

    began = time.perf_counter()
    run_here(recipe, until="distill")
    took = time.perf_counter() - began

    run, data = recipe.directory, Path(recipe.data.path)
    planned = {one.what: one.bytes for one in made.stored}
    real = {
        "shards": size(data, "shards/*") + size(data, "index/*"),
        "models": size(run, "folds/*/*/*/model/model.safetensors"),
        "checkpoints": size(run, "folds/*/*/*/checkpoints/step-*/**/*"),
        "targets": size(data, "targets/**/*.arrow"),
    }
    planned["targets"] = sum(value for name, value in planned.items() if name.startswith("targets"))
    seconds = sum((one.train or 0) + (one.answers or 0) for wave in made.waves for one in wave)
    told = [
        f"{what}: planned {planned[what]:,} bytes, stored {value:,} ({planned[what] / value - 1:+.1%})"
        for what, value in real.items()
    ] + [f"time: planned {seconds:.1f} s, took {took:.1f} s ({seconds / took - 1:+.1%})"]
    for line in told:
        record_property("figure", f"plan of a tiny run, {line}")
    assert planned["shards"] == real["shards"]
    for what in ("targets", "models", "checkpoints"):
        assert planned[what] == pytest.approx(real[what], rel=0.1), what
    assert len(made.steps) == sum(
        len(jobs(recipe, fold, name)) for fold in made.amount.folds for name in recipe.models
    )

    found = {one.name: one for one in beside(open_setting(recipe), made.waves, made.steps)}
    assert set(found) == set(recipe.models)
    for one in found.values():
        assert one.steps == (8, 8) and one.trainings == 1 and one.seconds[0] and 0 < one.seconds[1] < took
    show(recipe, Asked(gpus_per_node=1), Display())
    assert "Finished trainings beside this plan" in capsys.readouterr().out


def test_what_a_training_spent_stands_in_its_events(tmp_path):
    path = tmp_path / "events.jsonl"
    assert spent(path) is None
    lines = [{"kind": "train", "step": step, "time": 100.0 + 2 * step} for step in (4, 9)]
    path.write_text("\n".join(map(json.dumps, lines[:1])) + "\n")
    assert spent(path) is None, "one moment is no time"
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"kind": "tr')
    assert spent(path) == (10, 20.0)
