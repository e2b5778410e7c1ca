"""The page: well formed, self-contained, complete, and not broken by what a run may lack."""

import copy
import json
import re
from html.parser import HTMLParser

import pytest

from ser.evaluate import evaluate
from ser.report import words, write_page, write_report
from ser.report.markdown import PLAIN
from ser.report.tables import result_tables
from tests.ser import fake_run

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Every tag with its attributes; fails where tags do not nest."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.open == [], f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def all(self, tag):
        return [attrs for t, attrs in self.tags if t == tag]

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.text))


def page_of(path) -> Page:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    return Page(text)


def check_whole(page: Page, text: str) -> None:
    """What holds for every page: nothing from outside, every figure and table can be read aloud, links lead somewhere."""
    for tag, attrs in page.tags:
        assert tag not in ("script", "iframe", "object", "embed", "link", "base"), tag
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attrs.get(name)
            assert value is None or value.startswith(("data:image/svg+xml;base64,", "#")), (
                tag,
                name,
                value[:80],
            )
        assert not any(name.startswith("on") for name in attrs)
    visible = re.sub(r'src="data:[^"]*"', "", text)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", visible.split("<pre>")[0])
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert all(attrs["href"][1:] in ids for attrs in page.all("a"))
    assert all(len(attrs["alt"]) > 20 for attrs in page.all("img"))
    assert page.all("th") and all(attrs.get("scope") in ("row", "col") for attrs in page.all("th"))
    assert page.all("html") == [{"lang": "en"}]
    assert (
        "{{" not in text
        and "None" not in page.words.split("Recipe, resolved")[0]
        and "nan" not in page.words.split()
    )


@pytest.fixture(scope="module")
def heard() -> dict[str, list[tuple[int, int]]]:
    """What was told of the progress while `run` was made: (done, total)s of the evaluation and of the page."""
    return {"evaluate": [], "report": []}


@pytest.fixture(scope="module")
def run(tmp_path_factory, heard):
    """(setting, report, path of the page) of a cross-validated run."""
    setting = fake_run.make(tmp_path_factory.mktemp("run"), repeats=4)
    report = evaluate(setting, lambda *told: heard["evaluate"].append(told))
    return setting, report, write_report(setting, lambda *told: heard["report"].append(told))


def test_every_part_is_told_once(run, heard):
    recipe = run[0].recipe
    parts = len(recipe.models) + len(recipe.report.composites) + len(recipe.report.compare)
    assert heard["evaluate"] == [(done, parts) for done in range(1, parts + 1)]
    total = len(heard["report"])
    assert total > 20 and heard["report"] == [(done, total) for done in range(1, total + 1)]


def test_the_page_is_whole(run):
    setting, report, path = run
    assert path == setting.recipe.directory / "report.html"
    page = page_of(path)
    check_whole(page, path.read_text())
    for section in (
        "protocol", "results", "comparisons", "teachers", "curves", "confusions", "groups", "calibration", "sizes", "data",
        "exposure", "folds", "trainings", "made",
    ):  # fmt: skip
        assert {"id": section} in page.all("section")
    for name in report["order"]:
        assert page.words.count(name) >= 8
    # two score plots, two of differences, one of teachers, five curves, six confusions, four of groups, six
    # calibrations, three of cost: parameters, multiply-accumulates, real-time factor
    assert len(page.all("img")) == 2 + 2 + 1 + 5 + 6 + 4 + 6 + 3


def test_numbers_on_the_page_are_those_of_the_report(run):
    _, report, path = run
    text = page_of(path).words
    for name in report["order"]:
        score = report["models"][name]["scores"]["labels"]["pooled"]["ua"]
        assert f"{100 * score['value']:.1f}{100 * score['low']:.1f} to {100 * score['high']:.1f}" in text
    first = report["comparisons"][0]["result"]
    assert f"+{100 * first['difference']:.1f}" in text
    assert "no difference shown, as it should be with permuted targets" in text
    assert "Non-commercial or research-only terms apply" in text
    assert "4 test speakers, fewer than 8: no interval" in text


def fewer(report: dict) -> dict:
    """A copy of the report with two of its models, quicker to draw."""
    few = copy.deepcopy(report)
    few["order"] = ["student", "baseline"]
    few["models"] = {name: few["models"][name] for name in few["order"]}
    few["comparisons"] = few["comparisons"][:2]
    return few


@pytest.mark.slow
def test_a_page_of_the_same_report_is_kept_and_of_another_one_replaced(run, tmp_path):
    report = fewer(run[1])
    path = write_page(report, tmp_path / "report.html")
    stamp, first = path.stat().st_mtime_ns, path.read_bytes()
    assert write_page(json.loads(json.dumps(report)), path).stat().st_mtime_ns == stamp
    path.unlink()
    assert write_page(report, path).read_bytes() == first
    other = copy.deepcopy(report)
    other["about"] = "Something else."
    assert "Something else." in write_page(other, path).read_text()


def markdown_tables(text: str) -> dict[str, list[list[str]]]:
    """Rows of each table of a Markdown text, by the heading above it; the heads' row first."""
    found: dict[str, list[list[str]]] = {}
    heading = ""
    for line in text.splitlines():
        if line.startswith("## "):
            heading = line[3:]
        elif line.startswith("| ") and not line.startswith("| --- "):
            found.setdefault(heading, []).append(line[2:-2].split(" | "))
    return found


@pytest.mark.slow
def test_the_tables_stand_beside_the_page_as_markdown(run, tmp_path):
    """Every model has a row in every table of scores, and every cell is the page's."""
    report = run[1]
    text = write_page(report, tmp_path / "report.html").with_suffix(".md").read_text()
    assert text.isascii()
    found = markdown_tables(text)
    for table in result_tables(report):
        heads, *rows = found[f"Scores against {table['told']}"]
        assert [row[0] for row in rows] == report["order"]
        for row, wanted in zip(rows, table["rows"], strict=True):
            shown = dict(zip(heads, row, strict=True))
            for metric, cell in zip(table["columns"], wanted["cells"], strict=True):
                told = f"{cell['value']} ({cell['interval']})" if cell["interval"] else cell["value"]
                assert shown[words.title(metric)] == told.translate(PLAIN)
    assert len(found["Comparisons"]) == 1 + len(report["comparisons"])
    assert all(len({len(row) for row in rows}) == 1 for rows in found.values()), "as many cells in every row"


def test_what_users_write_is_text(run, tmp_path):
    other = fewer(run[1])
    other["about"] = '<script>alert("x")</script><img src=x>'
    path = write_page(other, tmp_path / "report.html")
    page = page_of(path)
    assert '<script>alert("x")</script>' in page.words
    check_whole(page, path.read_text())


def test_leaks_unknowns_and_what_is_missing_stand_out(run, tmp_path):
    other = fewer(run[1])
    other["protocol"]["strictness"] = "LEGACY"
    other["findings"].insert(
        0, {"kind": "speakers", "level": "leak", "fold": "fold-1", "text": "fold fold-1: 3 speakers in both train and test", "items": []},
    )  # fmt: skip
    other["models"]["student"]["exposure"] |= {"unknown": ["hub/wavlm"], "tuning": "non-nested"}
    other["models"]["student"]["unanswered"] = {"no_input": 3, "unreadable": 1, "of": 240}
    other["models"]["baseline"]["missing"] = ["fold-1 baseline seed 2"]
    other["incomplete"] = {"voice2": ["fold-1 voice2 seed 0"]}
    other["comparisons"].append(
        {"system": "voice2", "reference": "baseline", "metric": "ua", "against": "labels", "result": None, "reason": "not finished: voice2"},
    )  # fmt: skip
    path = write_page(other, tmp_path / "report.html")
    page = page_of(path)
    check_whole(page, path.read_text())
    badges = re.findall(r'<span class="badge (\w+)">([^<]+)</span>', path.read_text())
    assert ("bad", "LEGACY") in badges and ("bad", "LEAKS") in badges and ("bad", "INCOMPLETE") in badges
    assert '<span class="leak">fold fold-1: 3 speakers in both train and test</span>' in path.read_text()
    for words_ in (
        "no estimate for new speakers", "unknown: hub/wavlm", "non-nested: searched with sight of a test set; other settings as written", "3 of 240 without input",
        "missing fold-1 baseline seed 2", "voice2: 1 training missing", "not compared: not finished: voice2",
    ):  # fmt: skip
        assert words_ in page.words
    assert "none of these voices was heard" not in page.words


@pytest.mark.slow
def test_every_row_says_where_its_settings_come_from(run, tmp_path):
    """Undeclared, chosen elsewhere, and with a test set in view: the last in red, in the row, the head and the summary."""
    other = fewer(run[1])
    rows = 2 * len(other["order"])  # against two sets of labels

    def page(**declared) -> tuple[str, Page]:
        for model in other["models"].values():
            model["exposure"]["declared"] = declared or None
        path = write_page(other, tmp_path / "report.html")
        check_whole(page_of(path), path.read_text())
        return path.read_text(), page_of(path)

    assert {m["exposure"]["declared"] for m in other["models"].values()} == {None}
    plain, _ = page()
    assert plain.count("settings as written, not searched here</span></td>") == len(other["order"])
    assert plain.count(">settings as written</span>") == rows
    elsewhere, _ = page(selection="outside", data="another corpus")
    assert elsewhere.count("settings chosen on another corpus</span>") == len(other["order"])
    assert elsewhere.count('title="settings chosen on another corpus">settings from elsewhere</span>') == rows
    assert "NON-NESTED" not in plain + elsewhere
    seen, words_ = page(selection="non-nested", data="trials on fold-1")
    assert (
        len(re.findall(r'"in leak" title="non-nested: settings tuned on trials on fold-1">non-nested<', seen))
        == rows
    )
    assert '<span class="badge bad">NON-NESTED</span>' in seen
    assert "non-nested: settings tuned on trials on fold-1: the test voices had a say" in words_.words


def test_a_legacy_run_shows_its_leaks(tmp_path):
    """Utterances at random: every speaker is on both sides, and the page says so in red."""
    models = {
        "baseline": {
            "role": "baseline",
            "model": fake_run.CONV,
            "objective": fake_run.LABELS[:1],
            "train": fake_run.TRAIN,
        }
    }
    setting = fake_run.make(
        tmp_path, speakers=5, dims=False, models=models, seeds=[0], report={}, targets=False,
        protocol={"strictness": "LEGACY", "folds": {"kind": "random", "k": 2}, "dev": {"by": "utterance", "share": 0.2}},
    )  # fmt: skip
    path = write_report(setting)
    assert (setting.recipe.directory / "report.json").is_file()
    page = page_of(path)
    check_whole(page, path.read_text())
    assert "LEAK, speakers:" in page.words and "5 speakers in both train and test" in page.words
    assert "LEAK, exposure" in page.words and "5 test speakers, fewer than 8: no interval" in page.words
    assert "CCC" not in page.words.split("Recipe, resolved")[0]


@pytest.mark.slow
def test_synthetic_speech_with_one_split_ceilings_and_views(tmp_path):
    """The generated corpus is called so, and its ceilings stand beside the numbers."""
    objective = fake_run.LABELS
    models = {
        "prosody": {"role": "teacher", "model": fake_run.PROSODIC, "objective": objective, "train": fake_run.TRAIN},
        "student": {"role": "student", "model": fake_run.CONV, "objective": objective, "train": fake_run.TRAIN},
    }  # fmt: skip
    folds = {"kind": "fixed", "by": "official", "train": ["train"], "dev": ["dev"], "test": ["test"]}
    setting = fake_run.make(
        tmp_path, data=fake_run.rows(16, 3, True, licence="synthetic speech (espeak-ng), free of rights"),
        corpus="spokenaffect", models=models, seeds=[0], targets=False, protocol={"folds": folds, "dev": None},
        report={"ceilings": True, "references": {"clean": "extra.clean_label"}},
    )  # fmt: skip
    report, path = evaluate(setting), write_report(setting)
    page = page_of(path)
    check_whole(page, path.read_text())
    assert "SYNTHETIC SPEECH" in page.words and "Synthetic: spokenaffect is generated speech" in page.words
    assert {"id": "ceilings"} in page.all("section") and {"id": "comparisons"} not in page.all("section")
    assert (
        f"{100 * report['ceilings']['clean']['prosody']['arousal_sign']:.1f}" == "95.2"
        and "95.2" in page.words
    )
    assert "no stored targets" in page.words
    assert "Highest UA" in page.words


def test_a_run_of_ratings_alone(tmp_path):
    models = {
        "student": {
            "role": "student",
            "model": fake_run.CONV,
            "objective": fake_run.LABELS[1:],
            "train": fake_run.TRAIN,
        }
    }
    setting = fake_run.make(
        tmp_path, models=models, seeds=[0], report={}, targets=False, repeats=2,
        protocol={"classes": {}, "select_metric": "ccc"},
    )  # fmt: skip
    path = write_report(setting)
    page = page_of(path)
    check_whole(page, path.read_text())
    assert {"id": "confusions"} not in page.all("section") and "CCC valence" in page.words


@pytest.mark.parametrize(
    ("told", "want"),
    [
        (words.number(0.76941, "ua"), "76.9"),
        (words.number(-0.0234, "ua", True), "\N{MINUS SIGN}2.3"),
        (words.number(-0.0001, "ua", True), "0.0"),
        (words.number(None, "ua"), "\N{EN DASH}"),
        (words.p_value(0.00002), "< 0.0001"),
        (words.p_value(0.0005), "0.0005"),
        (words.count(59_300), "59.3 k"),
        (words.duration(125), "2 min 5 s"),
        (words.duration(None), "\N{EN DASH}"),
        (words.hours(0.41), "24.6 min"),
        (words.times(0.5), "2.0 times"),
        (words.spread([6, 6, 6]), "6"),
        (words.spread([6, 8]), "6 to 8"),
    ],
)
def test_words(told, want):
    assert told == want


@pytest.mark.parametrize(
    ("difference", "low", "high", "p", "metric", "permuted", "want"),
    [
        (0.1, 0.02, 0.2, 0.01, "ua", False, ("better", "better")),
        (-0.1, -0.2, -0.02, 0.01, "ua", False, ("worse", "worse")),
        (-0.1, -0.2, -0.02, 0.01, "nll", False, ("better", "better")),
        (0.1, -0.02, 0.2, 0.07, "ua", False, ("no difference shown", "none")),
        (0.01, -0.02, 0.04, 0.7, "ua", True, ("no difference shown, as it should be with permuted targets", "none")),
        (0.1, 0.02, 0.2, 0.01, "ua", True, ("better, which permuted targets should not be", "better")),
        (0.1, None, None, 0.01, "ua", False, ("undecided: 5 test speakers", "none")),
    ],
)  # fmt: skip
def test_verdicts(difference, low, high, p, metric, permuted, want):
    result = {"difference": difference, "low": low, "high": high, "p": p, "reason": "5 test speakers"}
    assert words.verdict({"result": result, "metric": metric, "reason": ""}, permuted) == want
