"""The page's content, worked out from the report: sentences, tables and figures, then laid into `page.html`."""

import json
from collections.abc import Callable
from typing import Any

import yaml

from ser.counting import steps
from ser.report import cost, figures, layout, words
from ser.report.tables import (
    calibration_table,
    comparison_rows,
    condition_tables,
    group_kinds,
    group_notes,
    group_tables,
    merged_findings,
    reference_names,
    relative_rows,
    result_tables,
    sign_table,
)
from ser.report.templates import fill

Progress = Callable[[int, int], object]
MOST_CONFUSIONS = 12
UNTOLD: dict[str, Any] = {"source": "stored", "mode": "eval", "teachers": {}}
NBSP = "\N{NO-BREAK SPACE}"


def render(report: dict[str, Any], stamp: str = "", progress: Progress | None = None) -> str:
    """The whole page as text; `stamp` says in its head what it was made from, `progress` hears (parts done, in all)."""
    return fill("page.html", w=words, r=report, stamp=stamp, **content(report, progress))


def content(report: dict[str, Any], progress: Progress | None = None) -> dict[str, Any]:
    """Everything that the template shows beside the report itself."""
    metric = report["headline"]
    comparisons = comparison_rows(report)
    teachers = [n for n in report["order"] if report["models"][n]["role"] == "teacher"]
    sure = [n for n in teachers if "entropy" in report["models"][n]["sureness"].get("dev", {})]
    parts: dict[str, Callable[[], Any]] = {
        "metric": lambda: metric,
        "strictness": lambda: report["protocol"]["strictness"],
        "rules": lambda: f"{report['protocol']['strictness']}, {report['protocol']['name']}",
        "badges": lambda: badges(report),
        "sentences": lambda: sentences(report, comparisons),
        "protocol": lambda: protocol_lines(report),
        "references": lambda: reference_names(report),
        "score_figures": lambda: [
            figures.scores(report, name, metric, f"against {told}")
            for name, told in reference_names(report).items()
            if any(metric in report["models"][n]["scores"][name]["pooled"] for n in report["order"])
        ],
        "results": lambda: result_tables(report),
        "grids": lambda: layout.grid_tables(report),
        "depths": lambda: layout.depth_figures(report),
        "trained": lambda: layout.trained(report),
        "shares": lambda: layout.layer_shares(report),
        "subsets": lambda: layout.subset_tables(report),
        "repeated": lambda: layout.repeated_rows(report),
        "comparisons": lambda: comparisons,
        "relative": lambda: relative_rows(report),
        "conditions": lambda: condition_tables(report),
        "encoders": lambda: report.get("encoders") or {},
        "difference_figures": lambda: [
            figures.differences(rows, m)
            for m in dict.fromkeys(row["metric"] for row in comparisons)
            if (rows := [row for row in comparisons if row["metric"] == m and row["result"]])
        ],
        "signs": lambda: sign_table(report),
        "sign_figures": lambda: [
            figures.sign_scores(report, name, sign)
            for name in reference_names(report)
            for sign in ("valence_sign", "arousal_sign")
            if any(sign in report["models"][n]["scores"][name]["signs"] for n in report["order"])
        ],
        "teachers": lambda: teachers,
        "sure": lambda: sure,
        "sure_figure": lambda: figures.sureness(report, sure) if sure else None,
        "curves": lambda: _present(
            figures.curves(n, report["models"][n], report["protocol"]["select_metric"])
            for n in report["order"]
        ),
        "confusions": lambda: confusion_figures(report),
        "groups": lambda: group_figures(report),
        "group_notes": lambda: group_notes(report),
        "group_tables": lambda: group_tables(report),
        "targets": lambda: report.get("targets", UNTOLD),
        "calibrations": lambda: calibration_figures(report),
        "calibration_table": lambda: calibration_table(report),
        "cost_figures": lambda: cost.ladder(report, metric),
        "findings": lambda: merged_findings(report),
        "unanswered": lambda: [n for n in report["order"] if any(_silent(report["models"][n]))],
        "tuned": lambda: {n: m["exposure"] for n, m in report["models"].items() if m["exposure"]["tuned"]},
        "recipe_text": lambda: yaml.safe_dump(
            report["recipe"], sort_keys=False, allow_unicode=True, width=110
        ),
        "environment_text": lambda: json.dumps(report["environment"], indent=2),
        "glossary": lambda: {words.title(m): words.METRICS[m][1] for m in _metrics_used(report)},
    }
    step = steps(progress, len(parts))
    return {name: step(make()) for name, make in parts.items()}


def _present(values: Any) -> list[Any]:
    return [value for value in values if value is not None]


def _silent(model: dict[str, Any]) -> tuple[int, int]:
    return model["unanswered"]["no_input"], model["unanswered"]["unreadable"]


def _metrics_used(report: dict[str, Any]) -> list[str]:
    used = {m for model in report["models"].values() for m in model["scores"]["labels"]["pooled"]}
    used |= {s for model in report["models"].values() for s in model["scores"]["labels"]["signs"]}
    return [m for m in words.METRICS if m in used]


def badges(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Words in the header that nobody may miss, each with a class for its colour."""
    out = [
        (report["protocol"]["strictness"], "good" if report["protocol"]["strictness"] == "STRICT" else "bad")
    ]
    if report["data"]["synthetic"]:
        out.append(("SYNTHETIC SPEECH", "warn"))
    if report["data"]["restricted"]:
        out.append(("NON-COMMERCIAL DATA", "warn"))
    if report["incomplete"] or any(m["missing"] for m in report["models"].values()):
        out.append(("INCOMPLETE", "bad"))
    if any(f["level"] == "leak" for f in report["findings"]):
        out.append(("LEAKS", "bad"))
    if any(words.is_non_nested(m["exposure"]) for m in report["models"].values()):
        out.append(("NON-NESTED", "bad"))
    return out


def sentences(report: dict[str, Any], comparisons: list[dict[str, Any]]) -> list[str]:
    """The result in a few sentences."""
    metric, out = report["headline"], []
    test, many = report["test"], report["folds"]
    where = words.plural(len(many), "fold") if len(many) > 1 else "one split"
    tested = (
        f"{words.plural(len(report['models']), 'model')} were tested on {test['utterances']:,} utterances of "
        f"{words.plural(test['speakers'], 'speaker')}, {where}"
    )
    out.append(f"{tested}{_heard(report)}")
    told = [m["exposure"] for m in report["models"].values() if words.is_non_nested(m["exposure"])]
    if told:
        out.append(
            f"{words.settings(told[0])}: the test voices had a say in the settings, so the numbers are too "
            "high by an unknown amount."
        )
    for row in comparisons:
        if row["against"] != "labels" or not row["result"] or row["result"]["difference"] is None:
            continue
        found, m = row["result"], row["metric"]
        unit = " points" if words.METRICS[m][2] == 100 else ""
        first, second = (words.number(v, m) for v in found["values"])
        span = words.interval(found, m, True)
        out.append(
            f"{row['system']} reaches {first} {words.title(m)}, {row['reference']} {second}: a difference of "
            f"{words.number(found['difference'], m, True)}{unit}"
            + (f", 95 % interval {span}" if span else "")
            + f", p{NBSP}{_equals(found['p'])}: {row['verdict']}."
        )
    if not comparisons:
        best = max(
            (n for n in report["order"] if metric in report["models"][n]["scores"]["labels"]["pooled"]),
            key=lambda n: report["models"][n]["scores"]["labels"]["pooled"][metric]["value"] or -9.0,
            default=None,
        )
        if best:
            score = report["models"][best]["scores"]["labels"]["pooled"][metric]
            out.append(f"Highest {words.title(metric)}: {best} with {words.number(score['value'], metric)}.")
    return out


def _heard(report: dict[str, Any]) -> str:
    """Whether the test voices are new to the models, as far as that is known."""
    unknown = sorted({hub for model in report["models"].values() for hub in model["exposure"]["unknown"]})
    if any(f["level"] == "leak" for f in report["findings"]):
        return ". There are leaks: what follows is no estimate for new speakers."
    if unknown:
        return f". Whether {', '.join(unknown)} heard any of these voices before is unknown."
    if any(f["kind"] == "unknown speakers" for f in report["findings"]):
        return "; some speakers are not known by name, so voices may repeat unnoticed."
    return "; none of these voices was heard in training."


def _equals(p: float | None) -> str:
    text = words.p_value(p)
    return text.replace(" ", NBSP) if text.startswith("<") else f"={NBSP}{text}"


def protocol_lines(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The protocol as questions and answers."""
    p = report["protocol"]
    folds, dev, views = p["folds"], p["dev"], report["views"]["count"]
    kinds = {
        "leave-one-out": f"one test set a {folds['by']}",
        "k-fold": f"{folds['k']} groups, each {folds['by']} whole",
        "groups": f"listed groups of {folds['by']}",
        "fixed": f"one fixed split by {'the corpus itself' if folds['by'] == 'official' else folds['by']}",
        "files": "test lists from files",
        "random": "utterances at random, so speakers are on both sides",
    }
    who = "listed with the folds" if dev is None and folds["dev"] else "nobody"
    if dev is not None:
        amount = (
            words.plural(dev["count"], dev["by"])
            if dev["count"]
            else f"{dev['share']:.0%} of the {dev['by']}s"
            if dev["share"]
            else ""
        )
        within = f", within each {dev['within']}" if dev["within"] else ""
        who = {"fold": "the next fold's test set", "test": "the test set itself"}.get(
            dev["by"], f"{amount} of the training side{within}"
        )
    checkpoint = {
        "best-dev": f"the one with the best {_metric_title(p['select_metric'])} on dev",
        "last": "the last one",
        "best-test": f"the one with the best {_metric_title(p['select_metric'])} on the test set",
    }
    chosen = (
        "best-test"
        if dev is not None and dev["by"] == "test" and p["checkpoint"] != "last"
        else p["checkpoint"]
    )
    shown = p["labelled"]
    labels = "all" if shown == 1 else f"{shown:.0%}" if isinstance(shown, float) and shown < 1 else str(shown)
    out = [
        ("Protocol", f"{p['name']}" + (f": {p['about']}" if p["about"] else "")),
        ("Strictness", _strictness(p["strictness"])),
        ("Speech", _speech(p)),
        ("Test sets", f"{kinds[folds['kind']]} ({words.plural(len(report['folds']), 'fold')} here)"),
        ("Dev set", who),
        ("Checkpoint", checkpoint[chosen]),
        ("Headline", f"{_metric_title(report['headline'])}, {'pooled over folds' if p['pool'] == 'pooled' else 'mean over folds'}"),
        ("Training labels that show", labels),
        ("Views", f"{views} augmented ones a training utterance; dev and test are clean" if views else "clean audio only"),
        ("Teachers' answers", _targets(report.get("targets", UNTOLD))),
        ("Seeds", ", ".join(map(str, report["recipe"]["seeds"])) + " (teachers: the first, unless told otherwise)"),
    ]  # fmt: skip
    if report["classes"]:
        out.insert(
            2,
            (
                "Classes",
                ", ".join(f"{c} (= {', '.join(o)})" if o != [c] else c for c, o in p["classes"].items()),
            ),
        )
    if report["dimensions"]:
        out.insert(3, ("Dimensions", ", ".join(report["dimensions"]) + ", on a scale from 0 to 1"))
    for name, proxy in p.get("proxies", {}).items():
        values = ", ".join(f"{own} = {value:g}" for own, value in proxy["values"].items())
        told = f"{proxy['field']} stands for {name} ({values}): a proxy, nobody rated {name} here"
        out.insert(4, ("Proxy", told))
    return out


def _speech(protocol: dict[str, Any]) -> str:
    """Which utterances take part, improvised ones alone for instance."""
    corpora = ", ".join(protocol["corpora"]) or "all corpora"
    if not protocol["subset"]:
        return f"all of {corpora}"
    kept = [f"{name} = {_listed(value)}" for name, value in protocol["subset"].items()]
    return f"of {corpora} only {' and '.join(kept)}"


def _listed(value: Any) -> str:
    return " or ".join(map(str, value)) if isinstance(value, list) else str(value)


def _targets(targets: dict[str, Any]) -> str:
    if targets["source"] == "stored":
        return "computed once, in evaluation mode, and stored"
    mode = (
        "in evaluation mode" if targets["mode"] == "eval" else "in TRAINING mode, their dropout on (LEGACY)"
    )
    return f"asked at every step of the students (online), {mode}"


def _metric_title(metric: str) -> str:
    return words.title(metric) if metric in words.METRICS else metric


def _strictness(name: str) -> str:
    if name == "STRICT":
        return "STRICT: no test voice was heard by a model, its teachers or whoever chose checkpoints"
    return "LEGACY: reproduces published practice with its flaws; such numbers are not comparable with STRICT ones"


def confusion_figures(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Confusion matrices against the protocol's labels."""
    out = []
    for n in report["order"][:MOST_CONFUSIONS]:
        scores = report["models"][n]["scores"]["labels"]
        if scores["confusion"] and "ua" in scores["pooled"]:
            ua = words.number(scores["pooled"]["ua"]["value"], "ua")
            role = report["models"][n]["role"]
            out.append(figures.confusion(n, role, scores["confusion"], report["classes"], ua))
    return out


def calibration_figures(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Calibration plots."""
    out = []
    for n in report["order"][:MOST_CONFUSIONS]:
        model = report["models"][n]
        score = model["scores"]["labels"]["pooled"].get("ece")
        if score and model["calibration"] and any(b["count"] for b in model["calibration"]):
            ece = words.number(score["value"], "ece")
            out.append(figures.calibration(n, model["role"], model["calibration"], ece))
    return out


def group_figures(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Bars by group, where there are two groups or more."""
    return _present(figures.groups(report, by, metric, report["order"]) for by, metric in group_kinds(report))
