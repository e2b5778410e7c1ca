"""Every number of report.json, worked out a second time from predictions.parquet and the corpus by other means."""

import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import softmax
from sklearn import metrics as sk

from ser.evaluate import evaluate
from ser.job import Job, directory
from shards.utterance import SAMPLE_RATE
from tests.ser import fake_run
from tests.ser.fake_run import CLASSES
from tests.ser.second_reading import FOLDS, Second, guesses, lin, posteriors, uar


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(setting, report, second reading) of a cross-validated run of twelve speakers."""
    data = fake_run.rows(12, 5, True)
    setting = fake_run.make(tmp_path_factory.mktemp("run"), data=data)
    return setting, evaluate(setting), Second(setting, data)


def test_the_file_is_what_was_returned_and_plain_json(run):
    setting, report, _ = run
    text = (setting.recipe.directory / "report.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == report
    assert report["order"] == list(setting.recipe.models)
    assert report["classes"] == list(CLASSES)


@pytest.mark.parametrize("against", ["labels", "clean"])
@pytest.mark.parametrize("model", ["student", "fused", "baseline"])
def test_class_scores(run, model, against):
    _, report, second = run
    scores = report["models"][model]["scores"][against]["pooled"]
    seeds = report["models"][model]["seeds"]
    assert seeds == ([0] if model == "fused" else [0, 1, 2])
    key = "label" if against == "labels" else "clean"
    want = {name: [] for name in ("ua", "wa", "macro_f1", "nll", "brier", "entropy", "ece")}
    for seed in seeds:
        rows = second.answers(model, seed)
        assert len({row["key"] for row in rows}) == len(rows) == 240
        t, g, p = second.truth(rows, key), guesses(rows), posteriors(rows)
        want["ua"].append(uar(t, g))
        want["wa"].append(sk.accuracy_score(t, g))
        want["macro_f1"].append(sk.f1_score(t, g, average="macro"))
        want["nll"].append(sk.log_loss(t, p, labels=range(4)))
        want["brier"].append(np.mean(((p - np.eye(4)[t]) ** 2).sum(1)))
        want["entropy"].append(np.mean([stats.entropy(q) for q in p]))
        want["ece"].append(calibration_error(p, t))
    for name, each in want.items():
        assert scores[name]["each_seed"] == pytest.approx(each, abs=1e-6), name
        assert scores[name]["value"] == pytest.approx(np.mean(each), abs=1e-6), name


def calibration_error(p, truth) -> float:
    import torch
    from torchmetrics.classification import MulticlassCalibrationError

    judge = MulticlassCalibrationError(num_classes=4, n_bins=15, norm="l1")
    return float(judge(torch.tensor(p), torch.tensor(truth)))


def test_dimension_scores(run):
    _, report, second = run
    scores = report["models"]["student"]["scores"]["labels"]["pooled"]
    whole = []
    for seed in (0, 1, 2):
        rows = second.answers("student", seed)
        each = []
        for i, name in enumerate(("valence", "arousal", "dominance")):
            each.append(lin([row[name] for row in rows], [row["dimensions"][i] for row in rows]))
            assert scores[f"ccc_{name}"]["each_seed"][seed] == pytest.approx(each[-1], abs=1e-6)
        whole.append(np.mean(each))
    assert scores["ccc"]["each_seed"] == pytest.approx(whole, abs=1e-6)
    assert scores["ccc"]["value"] == pytest.approx(np.mean(whole), abs=1e-6)


def test_cells_and_means_over_folds(run):
    _, report, second = run
    found = report["models"]["student"]["scores"]["labels"]
    cells = {(c["fold"], c["seed"]): c for c in found["cells"]}
    assert len(cells) == 9
    per_fold = []
    for fold in FOLDS:
        each = []
        for seed in (0, 1, 2):
            rows = second.answers("student", seed, folds=[fold])
            each.append(uar(second.truth(rows), guesses(rows)))
            assert cells[fold, seed]["ua"] == pytest.approx(each[-1], abs=1e-9)
            assert cells[fold, seed]["utterances"] == len(rows)
        per_fold.append(np.mean(each))
    assert found["mean_over_folds"]["ua"] == pytest.approx(np.mean(per_fold), abs=1e-9)


def test_confusions_and_calibration(run):
    _, report, second = run
    model = report["models"]["student"]
    total = np.zeros((4, 4), int)
    top, right = [], []
    for seed in (0, 1, 2):
        rows = second.answers("student", seed)
        t, g = second.truth(rows), guesses(rows)
        total += sk.confusion_matrix(t, g, labels=range(4))
        top += list(posteriors(rows).max(1))
        right += list(t == g)
    found = model["scores"]["labels"]["confusion"]
    assert found["counts"] == total.tolist() and found["unanswered"] == [0] * 4 and found["seeds"] == 3
    assert sum(b["count"] for b in model["calibration"]) == 720
    top, right = np.array(top), np.array(right)
    for i, b in enumerate(model["calibration"]):
        inside = (top > i / 15) & (top <= (i + 1) / 15)
        assert b["count"] == inside.sum()
        if b["count"]:
            assert b["accuracy"] == pytest.approx(right[inside].mean())
            assert b["confidence"] == pytest.approx(top[inside].mean(), abs=1e-6)


def test_jackknife_interval(run):
    _, report, second = run
    score = report["models"]["student"]["scores"]["labels"]["pooled"]["ua"]
    by_seed = [second.answers("student", seed) for seed in (0, 1, 2)]
    names = sorted({row["speaker"] for row in by_seed[0]})
    left = []
    for name in names:
        kept = [[row for row in rows if row["speaker"] != name] for rows in by_seed]
        left.append(np.mean([uar(second.truth(rows), guesses(rows)) for rows in kept]))
    n = len(names)
    half = stats.t.ppf(0.975, n - 1) * math.sqrt((n - 1) / n * np.sum((left - np.mean(left)) ** 2))
    assert (score["low"], score["high"]) == pytest.approx((score["value"] - half, score["value"] + half))
    assert (score["speakers"], score["seeds"]) == (12, 3)


@pytest.mark.parametrize("row", range(4))
def test_comparisons(run, row):
    """The swap test by brute force: UA is a sum over speakers, so 2^12 swaps are one matrix product."""
    _, report, second = run
    told = report["comparisons"][row]
    key = "label" if told["against"] == "labels" else "clean"
    parts, folds = [], []
    for model in (told["system"], told["reference"]):
        shares, per_fold = [], {fold: [] for fold in FOLDS}
        for seed in (0, 1, 2):
            rows = second.answers(model, seed)
            t, g = second.truth(rows, key), guesses(rows)
            weight = 1 / (4 * np.bincount(t)[t])
            speaker = np.array([r["speaker"] for r in rows])
            shares.append([(weight * (t == g))[speaker == s].sum() for s in sorted(set(speaker))])
            for fold in FOLDS:
                inside = np.array([r["fold"] == fold for r in rows])
                per_fold[fold].append(uar(t[inside], g[inside]))
        parts.append(np.mean(shares, axis=0))
        folds.append([np.mean(v) for v in per_fold.values()])
    gap = parts[0] - parts[1]
    found = told["result"]
    assert found["values"] == pytest.approx([p.sum() for p in parts])
    assert found["difference"] == pytest.approx(gap.sum())
    signs = np.array(list(itertools.product((1, -1), repeat=12)))
    assert found["p"] == pytest.approx(np.mean(np.abs(signs @ gap) >= abs(gap.sum()) - 1e-12))
    assert found["low"] < found["difference"] < found["high"]
    assert (found["low"] > 0 or found["high"] < 0) == (found["p"] <= 0.05)
    flips = np.array(list(itertools.product((1, -1), repeat=3))) @ (np.subtract(*folds))
    assert found["folds"]["p"] == pytest.approx(
        np.mean(np.abs(flips) >= abs(np.subtract(*folds).sum()) - 1e-12)
    )
    assert found["folds"]["smallest"] == 0.25


def test_what_was_put_in_comes_out(run):
    """A student far better than its baseline is told so; a control as good as the baseline is not."""
    _, report, _ = run
    student, control = report["comparisons"][0]["result"], report["comparisons"][2]["result"]
    assert student["difference"] > 0.15 and student["p"] < 0.01
    assert control["p"] > 0.05 and control["low"] < 0 < control["high"]


@pytest.mark.parametrize("by", ["language", "gender"])
def test_groups(run, by):
    _, report, second = run
    found = report["models"]["student"]["scores"]["labels"]["groups"][by]
    values = {"language": ("en", "fi", "fr"), "gender": ("female", "male")}[by]
    assert tuple(found["ua"]) == tuple(found["ccc"]) == values
    for value in values:
        ua, ccc = [], []
        for seed in (0, 1, 2):
            rows = [row for row in second.answers("student", seed) if row[by] == value]
            ua.append(uar(second.truth(rows), guesses(rows)))
            dims = ("valence", "arousal", "dominance")
            ccc.append(
                np.mean(
                    [
                        lin([r[d] for r in rows], [r["dimensions"][i] for r in rows])
                        for i, d in enumerate(dims)
                    ]
                )
            )
        assert found["ua"][value]["value"] == pytest.approx(np.mean(ua), abs=1e-9)
        assert found["ccc"][value]["value"] == pytest.approx(np.mean(ccc), abs=1e-6)
        assert found["ua"][value]["count"] == len(rows)
        assert "fewer than 8" in found["ua"][value]["reason"]
    assert list(report["models"]["student"]["scores"]["labels"]["groups"]["corpus"]["ua"]) == ["toy"]


def test_dev_and_sureness(run):
    setting, report, second = run
    rows = [row for seed in (0,) for row in second.answers("voice", seed, "dev")]
    t, p = second.truth(rows), posteriors(rows)
    assert report["models"]["voice"]["dev"]["ua"] == pytest.approx(uar(t, p.argmax(1)))
    sure = report["models"]["voice"]["sureness"]
    assert sure["dev"]["entropy"] == pytest.approx(np.mean([stats.entropy(q) for q in p]), abs=1e-6)
    assert sure["dev"]["nll"] == pytest.approx(sk.log_loss(t, p, labels=range(4)), abs=1e-6)
    # stored targets, read from the Arrow files by hand
    entropies, hits = [], []
    import pyarrow as pa

    spec_folders = list((setting.recipe.directory.parent / "data" / "targets" / "voice").iterdir())
    assert len(spec_folders) == 3
    for folder in spec_folders:
        fields = json.loads((folder / "targets.json").read_text())["fields"]
        heard = set(fields["exposure"]["fit"])
        for file in sorted(folder.rglob("*.arrow")):
            shard = int(file.stem)
            info = next(s for s in setting.dataset.shards if s.number == shard)
            table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
            names = set(table.column_names)
            assert {"state", "logits"} <= names
            for i, key in enumerate(setting.dataset.keys(np.arange(info.rows.start, info.rows.stop))):
                facts = second.data[second.place[key]]
                if f"toy/{facts['speaker']}" in heard and table["state"][i].as_py() == 1:
                    q = softmax(np.array(table["logits"][i].as_py(), float))
                    entropies.append(stats.entropy(q))
                    hits.append(CLASSES[q.argmax()] == facts["label"])
    assert sure["train"]["count"] == len(entropies) == 360
    assert sure["train"]["entropy"] == pytest.approx(np.mean(entropies), abs=1e-6)
    assert sure["train"]["accuracy"] == pytest.approx(np.mean(hits))
    assert sure["train"]["entropy"] < sure["dev"]["entropy"]


def test_facts(run):
    setting, report, second = run
    (corpus,) = report["data"]["corpora"]
    hours = float(np.asarray(setting.dataset.samples).sum()) / SAMPLE_RATE / 3600
    assert (corpus["corpus"], corpus["utterances"], corpus["speakers"]) == ("toy", 240, 12)
    assert corpus["hours"] == pytest.approx(hours)
    assert corpus["classes"] == {c: sum(row["label"] == c for row in second.data) for c in CLASSES}
    assert corpus["genders"] == {"female": 120, "male": 120}
    assert corpus["licences"] == ["CC BY-NC-SA 4.0"] and corpus["restricted"] and not corpus["synthetic"]
    assert [f["test"]["utterances"] for f in report["folds"]] == [80, 80, 80]
    assert sorted(s for f in report["folds"] for s in f["test_speakers"]) == [
        f"toy/s{i:02d}" for i in range(12)
    ]
    student = report["models"]["student"]
    assert student["exposure"]["fit"] == {f["name"]: f["train"]["speakers"] for f in report["folds"]}
    assert student["exposure"]["unknown"] == [] and student["exposure"]["tuning"] == "untuned"
    assert student["licences"]["restricted"] == ["CC BY-NC-SA 4.0"]
    assert 0 < student["speed"]["factor"] < 50 and "1 CPU thread" in student["speed"]["how"]
    assert student["speed"]["macs"] > 1000 and "FlopCounterMode" in student["speed"]["macs_how"]
    assert len(student["trainings"]) == 9 and {t["steps"] for t in student["trainings"]} == {40}
    folder = directory(setting.recipe, Job("fold-1", "student", 0)) / "model"
    assert student["bytes"] == (folder / "model.safetensors").stat().st_size
    assert student["parameters"] == json.loads((folder / "model.json").read_text())["parameters"]["total"]
    assert report["test"]["references"]["labels"]["chance_ua"] == 0.25
    assert not any(f["level"] == "leak" for f in report["findings"])
    assert report["ceilings"] is None and report["incomplete"] == {}
    curve = student["curves"][0]
    assert len(curve["loss"]) == 20 and [step for step, _ in curve["dev"]] == [8, 18, 28, 38]


def test_a_second_evaluation_writes_the_same_bytes(run):
    setting, _, _ = run
    path = setting.recipe.directory / "report.json"
    before = path.read_bytes()
    evaluate(setting)
    assert path.read_bytes() == before
