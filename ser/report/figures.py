"""Figures of the report as small SVG images in data URIs: one a panel, so that they wrap on a narrow screen.

Guarantees: no window, no global matplotlib state is changed; the same report gives the same bytes. Colour never carries meaning
alone: roles also have marks of their own.
"""

import base64
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from ser.report.words import LOWER_IS_BETTER, METRICS, number, title

COLOURS = {"teacher": "#3366aa", "student": "#1b7837", "baseline": "#8a6d00", "control": "#9b2d7f"}
MARKS = {"teacher": "s", "student": "o", "baseline": "D", "control": "X"}
CYCLE = ["#3366aa", "#1b7837", "#8a6d00", "#9b2d7f", "#c4491d", "#2b8a8a", "#555555", "#7a4fbf"]
INK, GRID = "#1c1c1c", "#d9d9d9"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 9.5, "axes.titleweight": "bold",
    "axes.edgecolor": "#777777", "axes.linewidth": 0.7, "axes.spines.top": False, "axes.spines.right": False,
    "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "grid.color": GRID,
    "grid.linewidth": 0.6, "legend.frameon": False, "legend.fontsize": 8, "svg.hashsalt": "ser", "axes.axisbelow": True,
}  # fmt: skip


@contextmanager
def panel(width: float, height: float) -> Iterator[tuple[Figure, dict[str, str]]]:
    """A figure of some inches; afterwards the dict holds its data URI under "uri"."""
    out: dict[str, str] = {}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure, out
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    out["uri"] = "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def image(alt: str, width: float, draw: Callable[[Figure], None], height: float) -> dict[str, Any]:
    """What the page needs of a figure: its URI, its alternative text and its natural width in pixels."""
    with panel(width, height) as (figure, out):
        draw(figure)
    return {"uri": out["uri"], "alt": alt, "width": round(width * 96)}


def scores(report: dict[str, Any], reference: str, metric: str, heading: str) -> dict[str, Any]:
    """Every model's value and interval of a metric as a dot with a bar, against chance and ceilings."""
    names = [n for n in report["order"] if metric in report["models"][n]["scores"][reference]["pooled"]]
    found = {n: report["models"][n]["scores"][reference]["pooled"][metric] for n in names}
    ceiling = (report["ceilings"] or {}).get(reference, {})
    limits = {n: ceiling.get(report["models"][n]["source"], {}).get(metric) for n in names}
    chance = report["test"]["references"][reference]["chance_ua"] if metric == "ua" else None
    # one scale for all sets of labels, so that panels side by side can be compared
    seen = [
        x
        for r in report["test"]["references"]
        for n in names
        for x in _ends(report["models"][n]["scores"][r]["pooled"].get(metric))
    ]
    return dots(report, heading, metric, names, found, limits, chance, seen)


def _ends(score: dict[str, Any] | None) -> list[float]:
    """What of a score must lie inside the axes."""
    return [score[k] for k in ("low", "value", "high") if score[k] is not None] if score else []


def sign_scores(report: dict[str, Any], reference: str, sign: str) -> dict[str, Any]:
    """The same for a two-class question derived from the quadrants."""
    names = [n for n in report["order"] if sign in report["models"][n]["scores"][reference]["signs"]]
    found = {n: report["models"][n]["scores"][reference]["signs"][sign] for n in names}
    ceiling = (report["ceilings"] or {}).get(reference, {})
    limits = {n: ceiling.get(report["models"][n]["source"], {}).get(sign) for n in names}
    heading = f"{title(sign)}, against {reference}" if reference != "labels" else title(sign)
    return dots(report, heading, sign, names, found, limits, 0.5, [0.4, 1.0])


def dots(
    report: dict[str, Any],
    heading: str,
    metric: str,
    names: list[str],
    found: dict[str, dict[str, Any]],
    limits: dict[str, float | None],
    chance: float | None,
    inside: list[float],
) -> dict[str, Any]:
    """Dots with intervals, a model a line; black bars are ceilings, the dotted line is chance.

    Args:
        inside: Values that the axis covers whatever else is drawn.
    """
    factor = METRICS[metric][2]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for y, name in enumerate(names):
            role, score = report["models"][name]["role"], found[name]
            if score["value"] is None:
                continue
            if score["low"] is not None:
                axes.plot(
                    [score["low"] * factor, score["high"] * factor], [y, y], color=COLOURS[role], lw=2.2, alpha=0.55,
                    solid_capstyle="butt",
                )  # fmt: skip
            axes.plot(score["value"] * factor, y, MARKS[role], color=COLOURS[role], ms=6.5)
            limit = limits[name]
            if limit is not None:
                axes.plot([limit * factor] * 2, [y - 0.36, y + 0.36], color="black", lw=1.6)
        if chance is not None:
            axes.axvline(chance * factor, color="#777777", ls=":", lw=1.2)
        every = [
            *inside,
            *([chance] if chance is not None else []),
            *(x for x in limits.values() if x is not None),
        ]
        if every:
            room = 0.04 * (max(every) - min(every)) or 0.02
            axes.set_xlim((min(every) - room) * factor, (max(every) + room) * factor)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(title(metric) + (" in %" if factor == 100 else ""))
        axes.set_title(heading, loc="left")

    told = "; ".join(f"{n} {number(found[n]['value'], metric)}" for n in names)
    return image(f"{heading}, {title(metric)} of every model: {told}", 5.1, draw, 0.95 + 0.27 * len(names))


def differences(rows: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    """Differences of a metric with their intervals against the line of no difference."""
    factor = METRICS[metric][2]
    rows = [row for row in rows if row["result"] and row["result"]["difference"] is not None]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for y, row in enumerate(rows):
            found, colour = row["result"], COLOURS.get(row["role"], INK)
            if found["low"] is not None:
                axes.plot(
                    [found["low"] * factor, found["high"] * factor], [y, y], color=colour, lw=2.2, alpha=0.55
                )
            axes.plot(found["difference"] * factor, y, MARKS.get(row["role"], "o"), color=colour, ms=6.5)
        axes.axvline(0, color=INK, lw=1)
        axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        unit = ", points" if factor == 100 else ", less is better" if metric in LOWER_IS_BETTER else ""
        axes.set_xlabel(f"difference in {title(metric)}{unit}")

    told = "; ".join(f"{r['label']} {number(r['result']['difference'], metric, True)}" for r in rows)
    return image(f"Differences in {title(metric)}: {told}", 7.2, draw, 0.75 + 0.3 * len(rows))


def curves(name: str, model: dict[str, Any], metric: str) -> dict[str, Any] | None:
    """Training loss above, dev metric below; a thin line a training, coloured by seed."""
    every = [c for c in model["curves"] if c["loss"] or c["dev"]]
    if not every:
        return None
    factor = METRICS.get(metric, ("", "", 1, 2))[2]
    seeds = {seed: CYCLE[i % len(CYCLE)] for i, seed in enumerate(dict.fromkeys(c["seed"] for c in every))}

    def draw(figure: Figure) -> None:
        above, below = figure.subplots(2, 1, sharex=True)
        for c in every:
            for axes, points, scale, mark in ((above, c["loss"], 1, None), (below, c["dev"], factor, ".")):
                if points:
                    x, y = np.array(points, dtype=float).T
                    axes.plot(x, y * scale, marker=mark, ms=4, lw=0.9, color=seeds[c["seed"]], alpha=0.75)
        above.set_title(name, loc="left", color=COLOURS[model["role"]])
        above.set_ylabel("training loss")
        below.set_ylabel(
            f"dev {title(metric) if metric in METRICS else metric}" + (", %" if factor == 100 else "")
        )
        below.set_xlabel("step")
        for axes in (above, below):
            axes.grid()
            axes.locator_params(axis="y", nbins=4)

    return image(
        f"Learning curves of {name}: training loss and dev {metric} over steps, {len(every)} trainings",
        3.3,
        draw,
        2.9,
    )


def confusion(name: str, role: str, found: dict[str, Any], classes: list[str], ua: str) -> dict[str, Any]:
    """Share of each true class (row) that was called each class (column), in per cent."""
    counts = np.array(found["counts"], dtype=float)
    silent = np.array(found["unanswered"], dtype=float)
    columns = list(classes)
    if silent.any():
        counts, columns = np.concatenate([counts, silent[:, None]], 1), [*columns, "(no answer)"]
    total = counts.sum(1, keepdims=True)
    share = 100 * np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    side = max(3.25, 0.42 * len(classes) + 1.25)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.imshow(share, cmap="Blues", vmin=0, vmax=100, aspect="auto")
        for (i, j), value in np.ndenumerate(share):
            axes.text(
                j,
                i,
                f"{value:.0f}",
                ha="center",
                va="center",
                color="white" if value > 55 else INK,
                fontsize=8,
            )
        axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right")
        axes.set_yticks(range(len(classes)), classes)
        axes.set_xlabel("answered")
        axes.set_ylabel("true")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set_title(f"{name}  (UA {ua})", loc="left", color=COLOURS[role])

    hits = ", ".join(f"{c} {share[i, i]:.0f}" for i, c in enumerate(classes))
    return image(f"Confusion matrix of {name}; recalls in per cent: {hits}", side, draw, side - 0.1)


def groups(report: dict[str, Any], by: str, metric: str, names: list[str]) -> dict[str, Any] | None:
    """Bars of a metric by group and model with intervals; groups without a value are said in the table beside."""
    factor = METRICS[metric][2]
    tables = {n: report["models"][n]["scores"]["labels"]["groups"][by].get(metric, {}) for n in names}
    tables = {n: t for n, t in tables.items() if t}
    kinds = sorted({g for t in tables.values() for g in t if t[g]["value"] is not None})
    if len(kinds) < 2:
        return None
    wide = 0.8 / len(tables)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for i, (name, table) in enumerate(tables.items()):
            for x, kind in enumerate(kinds):
                score = table.get(kind, {})
                if score.get("value") is None:
                    continue
                at, value = x - 0.4 + (i + 0.5) * wide, score["value"] * factor
                axes.bar(at, value, wide * 0.9, color=CYCLE[i % len(CYCLE)], label=name if x == 0 else None)
                if score["low"] is not None:
                    axes.plot([at, at], [score["low"] * factor, score["high"] * factor], color=INK, lw=1)
        axes.set_xticks(range(len(kinds)), kinds)
        axes.tick_params(axis="x", length=0)
        axes.grid(axis="y")
        axes.set_ylabel(title(metric) + (" in %" if factor == 100 else ""))
        axes.set_title(f"by {by}", loc="left")
        figure.legend(loc="outside lower center", ncols=3)

    told = "; ".join(
        f"{n}: " + ", ".join(f"{k} {number(t[k]['value'], metric)}" for k in kinds if k in t)
        for n, t in tables.items()
    )
    return image(f"{title(metric)} by {by}. {told}", 5.1, draw, 3.1)


def calibration(name: str, role: str, bins: list[dict[str, Any]], ece: str) -> dict[str, Any]:
    """How often the top class is right against how sure the model was; the size of a dot is the number of answers."""
    used = [b for b in bins if b["count"]]
    total = sum(b["count"] for b in used)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([0, 100], [0, 100], color="#777777", ls=":", lw=1.2)
        x, y = [100 * b["confidence"] for b in used], [100 * b["accuracy"] for b in used]
        axes.plot(x, y, color=COLOURS[role], lw=1)
        axes.scatter(x, y, [8 + 220 * b["count"] / total for b in used], color=COLOURS[role], alpha=0.8)
        axes.set(
            xlim=(0, 103),
            ylim=(0, 103),
            xticks=range(0, 101, 25),
            yticks=range(0, 101, 25),
            xlabel="sure, %",
            ylabel="right, %",
            aspect="equal",
        )
        axes.grid()
        axes.set_title(f"{name}  (ECE {ece})", loc="left", color=COLOURS[role])

    told = ", ".join(f"sure {100 * b['confidence']:.0f} right {100 * b['accuracy']:.0f}" for b in used)
    return image(f"Calibration of {name} in per cent: {told}", 2.45, draw, 2.6)


def sureness(report: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Entropy of each teacher's answers on training, dev and test utterances."""
    splits = [
        ("train", "trained on", "v"), ("train_unseen", "same voices, not trained on", "^"),
        ("train_cross_fitted", "cross-fitted targets", "P"), ("dev", "dev", "o"), ("test", "test", "D"),
    ]  # fmt: skip
    present = [s for s in splits if any(s[0] in report["models"][n]["sureness"] for n in names)]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for i, (split, label, mark) in enumerate(present):
            found = [
                (report["models"][n]["sureness"].get(split, {}).get("entropy"), y)
                for y, n in enumerate(names)
            ]
            found = [(x, y) for x, y in found if x is not None]
            axes.plot(
                *zip(*found, strict=True), ls="", marker=mark, ms=7, color=CYCLE[i], label=label, alpha=0.85
            )
        axes.axvline(np.log(len(report["classes"])), color="#777777", ls=":", lw=1.2)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("entropy in nats: left is sure, the dotted line is knowing nothing")
        figure.legend(loc="outside lower center", ncols=3)

    told = "; ".join(
        f"{n}: "
        + ", ".join(
            f"{label} {report['models'][n]['sureness'][s]['entropy']:.2f}"
            for s, label, _ in present
            if "entropy" in report["models"][n]["sureness"].get(s, {})
        )
        for n in names
    )
    return image(f"Entropy of the teachers' answers. {told}", 5.6, draw, 1.3 + 0.32 * len(names))
