"""The page's content, worked out from the report: sentences, tables and figures, then laid into `page.html`."""

import json
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ser.report import figures, words

ROLES = {"teacher": "teachers", "student": "students", "baseline": "baselines", "control": "controls"}
MOST_CONFUSIONS = 12


def render(report: dict[str, Any]) -> str:
    """The whole page as text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["w"] = words
    return environment.get_template("page.html").render(r=report, **content(report))


def content(report: dict[str, Any]) -> dict[str, Any]:
    """Everything that the template shows beside the report itself."""
    metric = report["headline"]
    comparisons = comparison_rows(report)
    teachers = [n for n in report["order"] if report["models"][n]["role"] == "teacher"]
    sure = [n for n in teachers if "entropy" in report["models"][n]["sureness"].get("dev", {})]
    return {
        "metric": metric,
        "strictness": report["protocol"]["strictness"],
        "badges": badges(report),
        "sentences": sentences(report, comparisons),
        "protocol": protocol_lines(report),
        "references": reference_names(report),
        "score_figures": [
            figures.scores(report, name, metric, f"against {told}")
            for name, told in reference_names(report).items()
            if any(metric in report["models"][n]["scores"][name]["pooled"] for n in report["order"])
        ],
        "results": result_tables(report),
        "comparisons": comparisons,
        "difference_figures": [
            figures.differences(rows, m)
            for m in dict.fromkeys(row["metric"] for row in comparisons)
            if (rows := [row for row in comparisons if row["metric"] == m and row["result"]])
        ],
        "signs": sign_table(report),
        "sign_figures": [
            figures.sign_scores(report, name, sign)
            for name in reference_names(report)
            for sign in ("valence_sign", "arousal_sign")
            if any(sign in report["models"][n]["scores"][name]["signs"] for n in report["order"])
        ],
        "teachers": teachers,
        "sure": sure,
        "sure_figure": figures.sureness(report, sure) if sure else None,
        "curves": _present(
            figures.curves(n, report["models"][n], report["protocol"]["select_metric"])
            for n in report["order"]
        ),
        "confusions": confusion_figures(report),
        "groups": group_figures(report),
        "group_notes": group_notes(report),
        "calibrations": calibration_figures(report),
        "size_figure": figures.sizes(report, metric),
        "findings": merged_findings(report),
        "unanswered": [n for n in report["order"] if any(_silent(report["models"][n]))],
        "tuned": {n: m["exposure"] for n, m in report["models"].items() if m["exposure"]["tuned"]},
        "recipe_text": yaml.safe_dump(report["recipe"], sort_keys=False, allow_unicode=True, width=110),
        "environment_text": json.dumps(report["environment"], indent=2),
        "glossary": {words.title(m): words.METRICS[m][1] for m in _metrics_used(report)},
    }


def _present(values: Any) -> list[Any]:
    return [value for value in values if value is not None]


def _silent(model: dict[str, Any]) -> tuple[int, int]:
    return model["unanswered"]["no_input"], model["unanswered"]["unreadable"]


def _metrics_used(report: dict[str, Any]) -> list[str]:
    used = {m for model in report["models"].values() for m in model["scores"]["labels"]["pooled"]}
    used |= {s for model in report["models"].values() for s in model["scores"]["labels"]["signs"]}
    return [m for m in words.METRICS if m in used]


def reference_names(report: dict[str, Any]) -> dict[str, str]:
    """How the page calls each set of reference labels."""
    return {
        name: "the protocol's labels" if name == "labels" else f"{name} labels ({facts['source']})"
        for name, facts in report["test"]["references"].items()
    }


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
    return out


def sentences(report: dict[str, Any], comparisons: list[dict[str, Any]]) -> list[str]:
    """The result in a few sentences."""
    metric, out = report["headline"], []
    test, many = report["test"], report["folds"]
    speakers = words.plural(test["speakers"], "speaker")
    where = f"{words.plural(len(many), 'fold')}" if len(many) > 1 else "one split"
    out.append(
        f"{words.plural(len(report['models']), 'model')} were tested on {test['utterances']:,} utterances of {speakers}, "
        f"{where}; none of these voices was heard in training."
        if not any(f["level"] == "leak" for f in report["findings"])
        else f"{words.plural(len(report['models']), 'model')} were tested on {test['utterances']:,} utterances of {speakers}, "
        f"{where}. There are leaks: what follows is no estimate for new speakers."
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
            + f", p {_equals(found['p'])}: {row['verdict']}."
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


def _equals(p: float | None) -> str:
    text = words.p_value(p)
    return text if text.startswith("<") else f"= {text}"


def protocol_lines(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The protocol as questions and answers."""
    p = report["protocol"]
    folds, dev, views = p["folds"], p["dev"], report["views"]["count"]
    kinds = {
        "leave-one-out": f"one test set a {folds['by']}",
        "k-fold": f"{folds['k']} groups by {folds['by']}",
        "groups": f"listed groups of {folds['by']}",
        "fixed": f"one fixed split by {'the corpus itself' if folds['by'] == 'official' else folds['by']}",
        "files": "test lists from files",
        "random": "utterances at random, so speakers are on both sides",
    }
    who = "listed with the folds" if dev is None and folds["dev"] else "nobody"
    if dev is not None:
        amount = dev["count"] or (f"{dev['share']:.0%}" if dev["share"] else "")
        who = {"fold": "the next fold's test set", "test": "the test set itself"}.get(
            dev["by"], f"{amount} of the training side, by {dev['by']}"
        )
    checkpoint = {
        "best-dev": f"the one with the best {_metric_title(p['select_metric'])} on dev",
        "last": "the last one",
        "best-test": "the best one on the test set",
    }
    shown = p["labelled"]
    labels = "all" if shown == 1 else f"{shown:.0%}" if isinstance(shown, float) and shown < 1 else str(shown)
    out = [
        ("Protocol", f"{p['name']}" + (f": {p['about']}" if p["about"] else "")),
        ("Strictness", _strictness(p["strictness"])),
        ("Test sets", f"{kinds[folds['kind']]} ({words.plural(len(report['folds']), 'fold')} here)"),
        ("Dev set", who),
        ("Checkpoint", checkpoint[p["checkpoint"]]),
        ("Headline", f"{_metric_title(report['headline'])}, {'pooled over folds' if p['pool'] == 'pooled' else 'mean over folds'}"),
        ("Training labels that show", labels),
        ("Views", f"{views} augmented ones a training utterance; dev and test are clean" if views else "clean audio only"),
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
    return out


def _metric_title(metric: str) -> str:
    return words.title(metric) if metric in words.METRICS else metric


def _strictness(name: str) -> str:
    if name == "STRICT":
        return "STRICT: no test voice was heard by a model, its teachers or whoever chose checkpoints"
    return "LEGACY: reproduces published practice with its flaws; such numbers are not comparable with STRICT ones"


def result_tables(report: dict[str, Any]) -> list[dict[str, Any]]:
    """One table a set of reference labels: a row a model, its metrics with intervals, its ceiling."""
    out = []
    for name, told in reference_names(report).items():
        have = {m for n in report["order"] for m in report["models"][n]["scores"][name]["pooled"]}
        wanted = (
            "ua", "wa", "macro_f1", "ccc", "ccc_valence", "ccc_arousal", "ccc_dominance", "ece", "brier", "nll", "soft_nll",
        )  # fmt: skip
        columns = [m for m in wanted if m in have]
        if len([m for m in columns if m.startswith("ccc_")]) == 1:
            columns.remove("ccc")
        limits = (report["ceilings"] or {}).get(name, {})
        rows = []
        for n in report["order"]:
            model = report["models"][n]
            scores = model["scores"][name]
            limit = limits.get(model["source"], {}).get("ua")
            rows.append(
                {
                    "name": n,
                    "role": model["role"],
                    "kind": model_words(model),
                    "parameters": words.count(model["parameters"]),
                    "cells": [words.cell(scores["pooled"].get(m), m) for m in columns],
                    "means": [words.number(scores["mean_over_folds"].get(m), m) for m in columns],
                    "each": [
                        ", ".join(
                            words.number(v, m) for v in scores["pooled"].get(m, {}).get("each_seed", [])
                        )
                        for m in columns
                    ],
                    "ceiling": words.number(limit, "ua") if limit is not None else words.NONE,
                    "unknown": model["exposure"]["unknown"],
                    "tuning": model["exposure"]["tuning"],
                }
            )
        out.append(
            {
                "name": name, "told": told, "columns": columns, "rows": rows, "ceilings": bool(limits),
                "chance": report["test"]["references"][name],
                "reasons": sorted({c["reason"] for row in rows for c in row["cells"] if "speakers" in c["reason"]}),
            }
        )  # fmt: skip
    return out


def model_words(model: dict[str, Any]) -> str:
    """What a model is and learns from, in a few words."""
    inputs = {"waveform": "audio", "mel": "log-mel", "prosody": "prosody", "text": "text"}
    parts = [" + ".join(inputs.get(i, i) for i in model["inputs"])]
    if model["needs"] and not model["objective"]:
        parts.append("product of " + " and ".join(model["needs"]))
    elif model["needs"]:
        parts.append("learns from " + " and ".join(model["needs"]))
    if model["permuted"]:
        parts.append("targets permuted")
    if model["label_from"]:
        parts.append(f"labels from {model['label_from']}")
    if model["labelled"] is not None:
        parts.append(f"labelled {model['labelled']}")
    return ", ".join(parts)


def comparison_rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Comparisons with their verdicts in words."""
    out = []
    for row in report["comparisons"]:
        role = report["models"].get(row["system"], {}).get("role", "")
        text, colour = words.verdict(row, role)
        against = "" if row["against"] == "labels" else f" ({row['against']})"
        label = f"{row['system']} {words.MINUS} {row['reference']}{against}"
        out.append({**row, "role": role, "verdict": text, "colour": colour, "label": label})
    return out


def sign_table(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Two-class accuracies with the law's ceilings beside them: a table a set of reference labels."""
    out = []
    for name, told in reference_names(report).items():
        limits = (report["ceilings"] or {}).get(name, {})
        rows = []
        for n in report["order"]:
            model = report["models"][n]
            found = model["scores"][name]["signs"]
            if not found:
                continue
            limit = limits.get(model["source"], {})
            scores = {**found, "ua": model["scores"][name]["pooled"].get("ua")}
            cells = [
                {**words.cell(scores.get(m), m), "ceiling": words.number(limit.get(m), m)}
                for m in ("valence_sign", "arousal_sign", "ua")
            ]
            rows.append({"name": n, "source": model["source"], "cells": cells})
        if rows:
            out.append({"told": told, "rows": rows})
    return out


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


def _groups(report: dict[str, Any]) -> list[tuple[str, str]]:
    found = {}
    for model in report["models"].values():
        for by, metrics in model["scores"]["labels"]["groups"].items():
            for metric, table in metrics.items():
                if len(table) > 1:
                    found[by, metric] = None
    return list(found)


def group_figures(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Bars by group, where there are two groups or more."""
    return _present(figures.groups(report, by, metric, report["order"]) for by, metric in _groups(report))


def group_notes(report: dict[str, Any]) -> list[str]:
    """Groups without a value or an interval, and why: said once each."""
    notes: dict[str, None] = {}
    for by, metric in _groups(report):
        for model in report["models"].values():
            table = model["scores"]["labels"]["groups"].get(by, {}).get(metric, {})
            for group, score in table.items():
                if score["reason"]:
                    notes[f"{by} {group}: {score['reason']}"] = None
                if score.get("absent_classes"):
                    absent = ", ".join(score["absent_classes"])
                    notes[f"{by} {group}: no test utterance of {absent}, which leaves the mean"] = None
    return list(notes)


def merged_findings(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Findings of one kind over several folds under one head; leaks first."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for finding in report["findings"]:
        kinds.setdefault((finding["level"], finding["kind"]), []).append(finding["text"])
    rows = [
        {"level": level, "kind": kind, "first": texts[0], "more": texts[1:]}
        for (level, kind), texts in kinds.items()
    ]
    return sorted(rows, key=lambda row: row["level"] != "leak")
