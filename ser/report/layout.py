"""What a recipe asks of its report beside the plain rows, drawn: grids of models, scores against depth, subsets."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ser.report import words
from ser.report.figures import CYCLE, image
from ser.report.tables import reference_names
from ser.report.words import METRICS, number, title

LINES = ("-", "--", ":", "-.")
SIGNS = "osDX^v"


def _asked(report: dict[str, Any], kind: str) -> Any:
    return (report["recipe"].get("report") or {}).get(kind) or []


def _score(report: dict[str, Any], model: str, reference: str, metric: str) -> dict[str, Any] | None:
    told = report["models"].get(model)
    return None if told is None else told["scores"][reference]["pooled"].get(metric)


def grid_tables(report: dict[str, Any]) -> list[dict[str, Any]]:
    """One table a grid and set of reference labels: cells of (metric, value, interval), the best of a metric marked."""
    out = []
    for grid in _asked(report, "grids"):
        columns = list(dict.fromkeys(column for row in grid["rows"].values() for column in row))
        for reference, told in reference_names(report).items():
            every = [name for row in grid["rows"].values() for name in row.values()]
            best = {m: _best(report, every, reference, m) for m in grid["metrics"]}
            rows = [
                {
                    "name": name,
                    "cells": [_cell(report, row.get(c), reference, grid["metrics"], best) for c in columns],
                }
                for name, row in grid["rows"].items()
            ]
            shown = {"title": grid["title"], "told": told, "columns": columns, "rows": rows}
            out.append(shown | {"metrics": [title(m) for m in grid["metrics"]]})
    return out


def _best(report: dict[str, Any], models: list[str], reference: str, metric: str) -> str | None:
    values = {
        n: s["value"]
        for n in models
        if (s := _score(report, n, reference, metric)) and s["value"] is not None
    }
    return max(values, key=lambda n: values[n], default=None)


def _cell(
    report: dict[str, Any], model: str | None, reference: str, metrics: list[str], best: dict[str, str | None]
) -> dict[str, Any]:
    if model is None:
        return {"model": "", "values": []}
    values = [
        {
            **words.cell(_score(report, model, reference, m), m),
            "metric": title(m),
            "best": best[m] == model,
        }
        for m in metrics
    ]
    return {"model": model, "values": values}


def trained(report: dict[str, Any]) -> dict[str, Any] | None:
    """Trained parameters beside a score, with their share of the large model's: rows and a figure."""
    asked = _asked(report, "trained")
    if not asked:
        return None
    metric = asked["metric"]
    whole = report["models"].get(asked["reference"])
    rows, points = [], []
    for name in [asked["reference"], *asked["models"]]:
        told = report["models"].get(name)
        if told is None:
            continue
        score = _score(report, name, "labels", metric)
        count, share = told["trainable"], words.NONE
        if whole is not None:
            share = f"{100 * count / whole['trainable']:.1f} / {100 * count / whole['parameters']:.1f}"
        rows.append({
            "name": name, "all": f"{told['parameters']:,}", "trained": f"{count:,}", "share": share,
            "cell": words.cell(score, metric),
        })  # fmt: skip
        if score and score["value"] is not None:
            points.append((name, count, score["value"] * METRICS[metric][2]))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for name, count, value in points:
            axes.plot(count, value, "o", ms=7, color=CYCLE[0])
            axes.annotate(name, (count, value), xytext=(7, 3), textcoords="offset points", fontsize=8)
        axes.set_xscale("log")
        axes.margins(x=0.3, y=0.15)
        axes.grid()
        axes.set_xlabel("trained parameters")
        axes.set_ylabel(title(metric))

    told = "; ".join(f"{name} {count:,} trained, {value:.2f}" for name, count, value in points)
    picture = image(f"{title(metric)} against trained parameters: {told}", 5.0, draw, 3.0)
    return {"figure": picture, "rows": rows, "metric": title(metric), "reference": asked["reference"]}


def layer_shares(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Softmax weights of weighted probes: a row a model and question, a column a state."""
    rows = []
    for name in report["order"]:
        for question, shares in (report["models"][name].get("layer_shares") or {}).items():
            cells = [f"{100 * share:.0f}" for share in shares]
            rows.append({"name": name, "question": question, "cells": cells})
    return rows


def subset_tables(report: dict[str, Any]) -> list[dict[str, Any]]:
    """One table a set of reference labels: a row a model, under each subset its headline metric and interval."""
    names = list(_asked(report, "subsets") or {})
    if not names:
        return []
    metric, out = report["headline"], []
    for reference, told in reference_names(report).items():
        rows, sizes = [], {}
        for model in report["order"]:
            found = report["models"][model]["scores"][reference]["subsets"]
            sizes = {n: (found[n]["utterances"], found[n]["speakers"]) for n in names}
            whole = _score(report, model, reference, metric)
            cells = [words.cell(whole, metric)]
            cells += [words.cell(found[n]["pooled"].get(metric), metric) for n in names]
            rows.append({"name": model, "cells": cells})
        out.append({"told": told, "metric": title(metric), "names": names, "sizes": sizes, "rows": rows})
    return out


def repeated_rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Test lines that training has read, a row a subset, summed over folds, with the folds' shares."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in report.get("repeated") or []:
        rows.setdefault(row["subset"], []).append(row)
    out = []
    for name, folds in rows.items():
        hit, count = (sum(row[key] for row in folds) for key in ("repeated", "utterances"))
        shares = [100 * row["repeated"] / row["utterances"] for row in folds if row["utterances"]]
        told = f"{min(shares):.1f} to {max(shares):.1f}" if len(shares) > 1 else ""
        share = f"{100 * hit / count:.1f}" if count else words.NONE
        out.append({"name": name, "repeated": hit, "utterances": count, "share": share, "folds": told})
    return out


def depth_figures(report: dict[str, Any]) -> list[dict[str, Any]]:
    """One figure a study: metrics against depth, a colour a metric, a mark a series; bars are intervals over speakers."""
    return [_depth(report, one) for one in _asked(report, "depths")]


def _depth(report: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    metrics, told, rows = asked["metrics"], [], []
    lines: list[tuple[str, str, list[tuple[int, dict[str, Any]]]]] = []
    for series, models in asked["series"].items():
        for metric in metrics:
            points = []
            for depth, model in sorted((int(d), n) for d, n in models.items()):
                score = _score(report, model, "labels", metric)
                if score and score["value"] is not None:
                    points.append((depth, score))
            lines.append((series, metric, points))
            told.append(
                f"{series}, {title(metric)}: "
                + ", ".join(f"{d} {number(score['value'], metric)}" for d, score in points)
            )
    levels = [
        (name, metric, score)
        for name, model in asked["levels"].items()
        for metric in metrics
        if (score := _score(report, model, "labels", metric)) and score["value"] is not None
    ]
    told += [f"{name}, {title(m)} {number(score['value'], m)}" for name, m, score in levels]
    for series, models in asked["series"].items():
        for depth, model in sorted((int(d), n) for d, n in models.items()):
            cells = [words.cell(_score(report, model, "labels", m), m) for m in metrics]
            rows.append({"series": series, "depth": str(depth), "name": model, "cells": cells})
    for name, model in asked["levels"].items():
        cells = [words.cell(_score(report, model, "labels", m), m) for m in metrics]
        rows.append({"series": name, "depth": "all", "name": model, "cells": cells})

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        names = list(asked["series"])
        for series, metric, points in lines:
            if not points:
                continue
            which, colour = names.index(series), CYCLE[metrics.index(metric) % len(CYCLE)]
            x = [depth + 0.06 * (metrics.index(metric) - 1) for depth, _ in points]
            y = [score["value"] * METRICS[metric][2] for _, score in points]
            style = {"color": colour, "ls": LINES[which % len(LINES)], "marker": SIGNS[which % len(SIGNS)]}
            axes.plot(x, y, ms=5, lw=1.6, label=f"{title(metric)}, {series}", **style)
            for at, (_, score) in zip(x, points, strict=True):
                if score["low"] is not None:
                    ends = [score[key] * METRICS[metric][2] for key in ("low", "high")]
                    axes.plot([at, at], ends, color=colour, lw=1.6, alpha=0.4)
        for name, metric, score in levels:
            colour = CYCLE[metrics.index(metric) % len(CYCLE)]
            which = list(asked["levels"]).index(name) + len(names)
            height = score["value"] * METRICS[metric][2]
            axes.axhline(
                height, color=colour, ls=LINES[which % len(LINES)], lw=1, label=f"{title(metric)}, {name}"
            )
        depths = [depth for _, _, points in lines for depth, _ in points]
        if depths:
            axes.set_xticks(
                np.arange(min(depths), max(depths) + 1, max(1, (max(depths) - min(depths)) // 12))
            )
        axes.set_xlabel("depth in layers (0: the convolutions' output)")
        axes.grid()
        figure.legend(loc="outside lower center", ncols=2)

    picture = image(f"{asked['title']}. {'; '.join(told)}", 6.4, draw, 4.4)
    return {"title": asked["title"], "figure": picture, "columns": [title(m) for m in metrics], "rows": rows}
