"""Recipes of Bijoy et al. 2025: every variant resolves, the tiny ones run whole, the full model is as large as the paper's."""

import pytest
import torch

from ser.recipe import RECIPES, Recipe, find, load
from shards.errors import UserError
from tests.whole import report_of, run_here

NAMES = sorted(p.stem for p in (RECIPES / "mtkd2025").glob("*.yaml"))
MONO = ["FT-Mono", "KD-Mono", "MTKD-Mono"]
LANGUAGES = {
    "tiny": "en fi fr",
    "tiny-repo": "en fi fr",
    "open": "en de pl ur",
    "full": "en fi fr",
    "repo": "en fi fr",
}


@pytest.fixture(autouse=True)
def paths(monkeypatch, tmp_path):
    for name in ("SER_CORPORA", "IEMOCAP", "FESC", "CAFE"):
        monkeypatch.setenv(name, str(tmp_path))


def test_there_is_a_recipe_for_every_scale_and_a_legacy_one():
    assert set(LANGUAGES) == set(NAMES)
    assert find("mtkd2025/tiny").name == "tiny.yaml"
    with pytest.raises(UserError, match="did you mean 'mtkd2025/tiny'"):
        find("mtkd2025/tin")


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_has_the_papers_columns(name):
    recipe, languages = load(f"mtkd2025/{name}"), LANGUAGES[name].split()
    legacy = "repo" in name
    assert list(recipe.report.composites) == MONO
    for column, stem in zip(MONO, ("ft", "kd", "mtkd"), strict=True):
        parts = recipe.report.composites[column].models
        assert parts == {language: f"{stem}_{language}" for language in languages}
        assert all(recipe.models[m].rows == {"language": [language]} for language, m in parts.items())
    teachers = [f"ft_{language}" for language in languages]
    assert recipe.models["kd_en"].target_sources == ("ft_multi",)
    assert (
        recipe.models["mtkd_en"].target_sources
        == recipe.models["mtkd_multi"].target_sources
        == tuple(teachers)
    )
    labels, divergence = recipe.models["mtkd_multi"].objective
    # lambda, T and tau of the paper
    assert (labels.weight, divergence.weight, divergence.temperature, divergence.tau) == (0.75, 0.25, 5, 0.25)
    assert divergence.direction == "forward"
    single = recipe.models["kd_en"].objective
    if legacy:
        assert (single[0].weight, single[1].weight) == (0.25, 0.75), "the code's other lambda for one teacher"
        assert (divergence.weights, divergence.reduction) == ("batch_cosine", "mean")
        assert (recipe.targets.source, recipe.targets.mode) == ("online", "train")
        assert all(m.teacher_fold for m in recipe.models.values() if m.target_sources)
        assert recipe.seeds_of("ft_en") == recipe.seeds_of("mtkd_en") and len(recipe.seeds) == 1
        with pytest.raises(UserError, match=r"only strictness LEGACY|listed twice"):
            load(
                f"mtkd2025/{name}",
                ["protocol={extends: " + str(recipe.protocol) + ", strictness: STRICT, dev: {by: fold}}"],
            )
    else:
        assert (single[0].weight, single[1].weight) == (0.75, 0.25), "one lambda for one teacher and for many"
        assert (divergence.weights, divergence.reduction) == ("cosine", "batchmean")
        assert recipe.models["mtkd_multi_uniform"].objective[1].weights == "uniform"
        assert recipe.models["mtkd_multi_oracle"].objective[1].weights == "language"
        assert all(recipe.seeds_of(m) == [0, 1, 2] for m in recipe.models)
        assert len({str(m.train) for m in recipe.models.values()}) == 1, (
            "one checkpoint rule and schedule for all columns"
        )
    assert len({m.model.model_dump_json() for m in recipe.models.values()}) == 1


def test_the_full_model_is_wav2vec2_base_on_the_meta_device():
    from ser.models import build
    from ser.models.config import parse_config

    values = load("mtkd2025/full").models["ft_en"].model.model_dump()
    assert values.pop("name") == "facebook/wav2vec2-base"
    with torch.device("meta"):
        model = build(parse_config({**values, "config": {"model_type": "wav2vec2"}}), 4, False)
    count = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    head = 768 * 256 + 256 + 256 * 4 + 4
    # without the embedding of masked frames (768), which nothing masks
    assert count == 94_371_712 - 768 + head, "wav2vec2-base, projector and classifier"
    assert count - trained == 4_200_448, "the convolutions are frozen, as in the released code"


def small(name: str, tmp_path_factory, **changes) -> Recipe:
    """A tiny recipe over 300 utterances with one seed and a few steps a training."""
    folder = tmp_path_factory.mktemp(name)
    values = load(f"mtkd2025/{name}")
    steps = [f"models.{m}.train.steps=24" for m in values.models]
    steps += [
        f"models.{m}.train.evaluate_every=12" for m, e in values.models.items() if e.train.evaluate_every
    ]
    return load(
        f"mtkd2025/{name}",
        [
            f"data.path={folder / 'data'}", f"data.corpora.0.root={tmp_path_factory.getbasetemp() / 'spokenaffect-300'}",
            "data.corpora.0.generate={utterances: 300, seed: 1}", f"run_dir={folder / 'run'}", "seeds=[0]", "cluster.cpus=2",
            *(f"models.{m}.seeds=[0]" for m, e in values.models.items() if e.seeds), *steps,
            *(f"{key}={value}" for key, value in changes.items()),
        ],
    )  # fmt: skip


@pytest.mark.slow
def test_the_tiny_recipe_runs_whole_and_has_all_rows(tmp_path_factory):
    recipe = small("tiny", tmp_path_factory)
    report = report_of(recipe)
    assert report["order"] == [*recipe.models, *MONO] and not report["incomplete"]
    for name in report["order"]:
        told = report["models"][name]["scores"]["labels"]
        assert 0 < told["pooled"]["ua"]["value"] < 1
        for metric in ("ua", "wa"):
            assert set(told["groups"]["language"][metric]) == {"en", "fi", "fr"}
    assert len(report["comparisons"]) == 2 * len(recipe.report.compare) and all(
        c["result"] for c in report["comparisons"]
    )
    for column, stem in zip(MONO, ("ft", "kd", "mtkd"), strict=True):
        for language in ("en", "fi", "fr"):
            part = report["models"][f"{stem}_{language}"]["scores"]["labels"]["groups"]["language"]["wa"][
                language
            ]
            assert report["models"][column]["scores"]["labels"]["groups"]["language"]["wa"][language] == part
    assert report["models"]["FT-Mono"]["parameters"] == 3 * report["models"]["ft_en"]["parameters"]
    fit = {n: report["models"][n]["exposure"]["fit"]["fixed"] for n in ("ft_en", "ft_fi", "ft_fr", "ft_multi", "FT-Mono", "kd_en")}  # fmt: skip
    assert fit["ft_en"] < fit["FT-Mono"] <= fit["ft_multi"] and fit["kd_en"] == fit["ft_multi"], (
        "exposure is closed"
    )
    costs = report["targets"]
    assert costs["source"] == "stored" and set(costs["teachers"]) == {"ft_en", "ft_fi", "ft_fr", "ft_multi"}
    for told in costs["teachers"].values():
        assert told["saved"] == told["read"] - told["computed"] and told["computed"] > 0 and told["bytes"] > 0
    page = (recipe.directory / "report.html").read_text()
    for words in (
        "FT-Mono",
        "WA by language",
        "Passes saved",
        "Disk used",
        "for each language its own model",
    ):
        assert words in page
    again = run_here(recipe)
    assert all(line.made == 0 for line in again), "all is there and valid"


@pytest.mark.slow
def test_the_released_codes_setup_runs_under_legacy_with_a_red_line(tmp_path_factory):
    recipe = small("tiny-repo", tmp_path_factory)
    report = report_of(recipe)
    assert report["order"] == [*recipe.models, *MONO] and report["protocol"]["strictness"] == "LEGACY"
    leaks = [f["text"] for f in report["findings"] if f["level"] == "leak"]
    assert any("ft_en was fitted on" in text and "fold-1" in text for text in leaks), (
        "a teacher of the other split"
    )
    assert any("was selected on" in text and "non-nested" in text for text in leaks), "dev is test"
    assert any(f["kind"] == "teachers in training mode" for f in report["findings"])
    assert report["targets"]["source"] == "online" and report["targets"]["mode"] == "train"
    told = report["targets"]["teachers"]["ft_en"]
    assert told["computed"] == told["read"] > 0 and told["saved"] == told["bytes"] == 0
    page = (recipe.directory / "report.html").read_text()
    assert "LEAK" in page and "in TRAINING mode" in page and 'leak">LEGACY' in page
