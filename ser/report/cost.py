"""What a model's score costs: three panels, score against parameters, multiply-accumulates and real-time factor."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ser.report.figures import COLOURS, MARKS, image
from ser.report.words import METRICS, count, number, title

# name of the axis -> (what a model's entry in the report says of it, how a number of it is written)
AXES = {
    "parameters": (lambda model: model["parameters"], count),
    "MACs a second of speech": (lambda model: model["speed"].get("macs"), count),
    "real-time factor": (lambda model: model["speed"]["factor"], lambda x: f"{x:.2g}"),
}


def ladder(report: dict[str, Any], metric: str) -> list[dict[str, Any]]:
    """One panel a cost, left out where no model has that cost; every model with a score is a point with its interval."""
    panels = (panel(report, metric, axis) for axis in AXES)
    return [found for found in panels if found is not None]


def points(report: dict[str, Any], metric: str, axis: str) -> list[tuple[str, str, float, dict[str, Any]]]:
    """(name, role, cost, score) of every model that has both."""
    found = []
    for name in report["order"]:
        model = report["models"][name]
        score, cost = model["scores"]["labels"]["pooled"].get(metric), AXES[axis][0](model)
        if score and score["value"] is not None and cost:
            found.append((name, model["role"], cost, score))
    return found


def panel(report: dict[str, Any], metric: str, axis: str) -> dict[str, Any] | None:
    """Score against one cost on a logarithmic axis; None without a point."""
    factor, say, found = METRICS[metric][2], AXES[axis][1], points(report, metric, axis)
    if not found:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for role in dict.fromkeys(p[1] for p in found):
            mine = [p for p in found if p[1] == role]
            for _, _, x, score in mine:
                if score.get("low") is not None:
                    ends = [score["low"] * factor, score["high"] * factor]
                    axes.plot([x, x], ends, color=COLOURS[role], lw=1.6, alpha=0.4)
            axes.plot(
                [p[2] for p in mine], [p[3]["value"] * factor for p in mine], ls="", marker=MARKS[role], ms=7,
                color=COLOURS[role], label=role,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.margins(x=0.35, y=0.12)
        costs = [p[2] for p in found]
        wide = max(costs) / min(costs) > 100
        axes.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5), numticks=8))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: say(x)))
        axes.xaxis.set_minor_locator(NullLocator())
        for (name, _, x, _s), at in zip(found, _apart([p[3]["value"] * factor for p in found]), strict=True):
            axes.annotate(name, (x, at), xytext=(7, 0), textcoords="offset points", fontsize=7.5, va="center")
        axes.grid()
        axes.set_xlabel(axis)
        axes.set_ylabel(title(metric) + (" in %" if factor == 100 else ""))
        figure.legend(loc="outside lower center", ncols=4)

    told = "; ".join(f"{n} {say(x)}, {number(s['value'], metric)}" for n, _, x, s in found)
    return image(f"{title(metric)} against {axis}: {told}", 4.2, draw, 3.2)


def _apart(heights: list[float], share: float = 0.07) -> list[float]:
    """Heights of labels: moved up where they would lie upon each other."""
    gap = share * (max(heights) - min(heights)) if heights else 0.0
    out, last = list(heights), -np.inf
    for i in np.argsort(heights, kind="stable"):
        out[i] = last = max(heights[i], last + gap)
    return out
