"""Tables of the page: rows of plain text cells, worked out from the report."""

from typing import Any

from ser.report import words


def reference_names(report: dict[str, Any]) -> dict[str, str]:
    """How the page calls each set of reference labels."""
    return {
        name: "the protocol's labels" if name == "labels" else f"{name} labels ({facts['source']})"
        for name, facts in report["test"]["references"].items()
    }


def result_tables(report: dict[str, Any]) -> list[dict[str, Any]]:
    """One table a set of reference labels: a row a model, its metrics with intervals, its ceiling."""
    out = []
    for name, told in reference_names(report).items():
        have = {m for n in report["order"] for m in report["models"][n]["scores"][name]["pooled"]}
        wanted = (
            "ua", "wa", "macro_f1", "ccc", "ccc_valence", "ccc_arousal", "ccc_dominance",
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
                    "parameters": sizes(model),
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
                    "settings": words.settings(model["exposure"]),
                    "settings_short": words.settings_short(model["exposure"]),
                    "non_nested": words.is_non_nested(model["exposure"]),
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


def sizes(model: dict[str, Any]) -> str:
    """Parameters of a model, and apart from them those of the frozen encoders that it hears through."""
    frozen = sum(model.get("encoder_parameters", {}).values())
    return words.count(model["parameters"]) + (f" + {words.count(frozen)} frozen" if frozen else "")


def relative_rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Relative gains beside those that a paper states: what was measured here, the other one by its source."""
    out = []
    for row in report["comparisons"]:
        if row.get("published") is None or row["against"] != "labels":
            continue
        values = row["result"]["values"] if row["result"] else None
        gain = (values[0] - values[1]) / values[1] if values and values[1] and values[1] > 0 else None
        out.append(
            {
                **row,
                "first": words.number(values[0] if values else None, row["metric"]),
                "second": words.number(values[1] if values else None, row["metric"]),
                "gain": words.percent(gain),
                "stated": words.percent(row["published"]),
                "parameters": [
                    sizes(report["models"][n]) if n in report["models"] else words.NONE
                    for n in (row["system"], row["reference"])
                ],
            }
        )
    return out


def condition_tables(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Robustness: a table a metric, a row a model, a column a condition."""
    told = report.get("conditions")
    if not told:
        return []
    have = {m for rows in told["scores"].values() for scores in rows.values() for m in scores}
    out = []
    for metric in ("ccc_valence", "ccc_arousal", "ccc_dominance", "ccc", "ua"):
        if metric in have:
            rows = [
                {"name": n, "cells": [words.cell(scores[c].get(metric), metric) for c in told["names"]]}
                for n, scores in told["scores"].items()
                if metric in scores["clean"]
            ]
            out.append({"metric": metric, "columns": told["names"], "rows": rows})
    return out


def model_words(model: dict[str, Any]) -> str:
    """What a model is and learns from, in a few words."""
    inputs = {
        "waveform": "audio",
        "mel": "log-mel",
        "prosody": "prosody",
        "text": "text",
        "layers": "hidden states",
    }
    encoders = model.get("encoder_parameters", {})
    inputs |= {name: f"frames of {name}" for name in encoders}
    parts = [" + ".join(str(inputs.get(i, i)) for i in model["inputs"])]
    needs = [name for name in model["needs"] if name not in encoders]
    if model["kind"] == "composite":
        parts.append(f"for each {model['by'].removeprefix('extra.')} its own model: {', '.join(needs)}")
    elif model["kind"] == "probe":
        parts.append(f"probe of the frozen {needs[0]}")
    elif model["kind"] == "fused" and needs:
        how = "made of" if model["objective"] else "product of"
        parts.append(f"{how} {' and '.join(needs)}")
    elif needs:
        parts.append("learns from " + " and ".join(needs))
    if model["permuted"]:
        parts.append("targets permuted")
    if model["label_from"]:
        parts.append(f"labels from {model['label_from']}")
    if model["labelled"] is not None:
        parts.append("all labels" if model["labelled"] == 1 else f"labelled: {model['labelled']}")
    return ", ".join(parts)


def comparison_rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Comparisons with their verdicts in words."""
    out = []
    for row in report["comparisons"]:
        role = report["models"].get(row["system"], {}).get("role", "")
        permuted = report["models"].get(row["system"], {}).get("permuted", False)
        text, colour = words.verdict(row, permuted)
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


def calibration_table(report: dict[str, Any]) -> dict[str, Any]:
    """How honest the posteriors are: ECE, Brier and NLL of every model against the protocol's labels."""
    columns = ("ece", "brier", "nll", "soft_nll", "entropy")
    pooled = {n: report["models"][n]["scores"]["labels"]["pooled"] for n in report["order"]}
    columns = [m for m in columns if any(m in scores for scores in pooled.values())]
    rows = [
        {"name": n, "cells": [words.cell(scores.get(m), m) for m in columns]}
        for n, scores in pooled.items()
        if any(m in scores for m in columns)
    ]
    return {"columns": columns, "rows": rows}


def group_kinds(report: dict[str, Any]) -> list[tuple[str, str]]:
    """(what rows are grouped by, metric) where there are two groups or more."""
    found = {}
    for model in report["models"].values():
        for by, metrics in model["scores"]["labels"]["groups"].items():
            for metric, table in metrics.items():
                if len(table) > 1:
                    found[by, metric] = None
    return list(found)


def group_tables(report: dict[str, Any]) -> list[dict[str, Any]]:
    """A table a (what rows are grouped by, metric): a row a model, a column a group, each with its interval."""
    out = []
    for by, metric in group_kinds(report):
        found = {
            n: table
            for n in report["order"]
            if (table := report["models"][n]["scores"]["labels"]["groups"].get(by, {}).get(metric))
        }
        columns = sorted({group for table in found.values() for group in table})
        rows = [
            {"name": n, "cells": [words.cell(table.get(c), metric) for c in columns]}
            for n, table in found.items()
        ]
        out.append({"by": by, "metric": metric, "columns": columns, "rows": rows})
    return out


def group_notes(report: dict[str, Any]) -> list[str]:
    """Groups without a value or an interval, and why: said once each."""
    notes: dict[str, dict[str, None]] = {}
    for by, metric in group_kinds(report):
        for model in report["models"].values():
            table = model["scores"]["labels"]["groups"].get(by, {}).get(metric, {})
            for group, score in table.items():
                name = f"{by} {group}"
                if score["reason"]:
                    notes.setdefault(score["reason"], {})[name] = None
                if score.get("absent_classes"):
                    absent = ", ".join(score["absent_classes"])
                    notes.setdefault(f"no test utterance of {absent}, which leaves the mean", {})[name] = None
    return [f"{', '.join(names)}: {reason}" for reason, names in notes.items()]


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
