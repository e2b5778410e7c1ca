"""The page of a sweep, made from `sweep.json` alone: history, importances, parallel coordinates, the front, every trial."""

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ser.report.figures import CYCLE, INK, image
from ser.report.templates import fill
from shards import atomic

Told = dict[str, Any]
STATES = {
    "complete": "finished",
    "pruned": "pruned",
    "fail": "failed",
    "running": "running",
    "waiting": "waiting",
}


def write_page(told: Told, folder: Path) -> Path:
    """Write `sweep.json` and `sweep.html` into a folder, whole; the path of the page."""
    text = json.dumps(told, indent=1, allow_nan=False)
    atomic.write(folder / "sweep.json", text + "\n")
    page = fill(
        "sweep.html", s=told, states=STATES, number=number, short=short(told["keys"]), **figures(told)
    )
    atomic.write(folder / "sweep.html", page)
    return folder / "sweep.html"


def number(value: Any) -> str:
    """A number or label in a table cell; a dash for none."""
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def short(keys: list[str]) -> dict[str, str]:
    """Key -> its last parts, as many as tell it from the others."""
    out = {}
    for key in keys:
        parts = key.split(".")
        for count in range(1, len(parts) + 1):
            tail = ".".join(parts[-count:])
            if sum(other == key or other.endswith("." + tail) for other in keys) == 1:
                break
        out[key] = tail
    return out


def figures(told: Told) -> dict[str, Any]:
    """What the page shows beside the numbers; None or empty where there is nothing to draw."""
    done = [trial for trial in told["trials"] if trial["state"] == "complete"]
    many = len(told["objectives"]) > 1
    return {
        "histories": [history(told, i) for i in range(len(told["objectives"]))] if done else [],
        "importances": [
            importances(told, one["title"]) for one in told["objectives"] if told["importances"][one["title"]]
        ],
        "parallel": parallel(told, done) if len(done) > 1 else None,
        "fronts": [front(told, done, 0, j) for j in range(1, len(told["objectives"]))]
        if many and done
        else [],
        "race": race(told) if any(len(trial["steps"]) > 1 for trial in told["trials"]) else None,
    }


def _better(values: list[float], direction: str) -> list[float]:
    return list((np.maximum if direction == "maximize" else np.minimum).accumulate(values))


def history(told: Told, index: int) -> dict[str, Any]:
    """Every trial's value in the order of their numbers, and the best so far."""
    objective = told["objectives"][index]
    done = [(t["number"], t["values"][index]) for t in told["trials"] if t["state"] == "complete"]
    pruned = [(t["number"], t["values"][0]) for t in told["trials"] if t["state"] == "pruned" and t["values"]]
    x, y = [n for n, _ in done], [v for _, v in done]
    best = _better(y, objective["direction"])

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(x, y, "o", ms=5, color=CYCLE[0], alpha=0.75, label="finished")
        if pruned:
            axes.plot(*zip(*pruned, strict=True), "x", ms=5, color="#777777", label="pruned: its last value")
        axes.step(x, best, where="post", color=INK, lw=1.2, label="best so far")
        axes.grid()
        axes.set_xlabel("trial")
        axes.set_ylabel(objective["title"])
        axes.locator_params(axis="x", integer=True)
        figure.legend(loc="outside lower center", ncols=3)

    words = f"{objective['title']} of {len(done)} finished trials; best {best[-1]:.4g}, first {y[0]:.4g}"
    return image(words, 6.0, draw, 3.2)


def importances(told: Told, title: str) -> dict[str, Any]:
    """A bar a key: its share of what tells better trials from others."""
    found, names = told["importances"][title], short(told["keys"])

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.barh(range(len(found)), [100 * share for share in found.values()], 0.6, color=CYCLE[1])
        axes.set_yticks(range(len(found)), [names[key] for key in found])
        axes.invert_yaxis()
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("importance, %")
        axes.set_title(title, loc="left")

    words = "; ".join(f"{key} {100 * share:.0f} %" for key, share in found.items())
    return image(f"Importance for {title}: {words}", 5.0, draw, 0.9 + 0.3 * len(found))


def _places(told: Told, key: str, done: list[Told]) -> tuple[dict[int, float], list[tuple[float, str]]]:
    """Trial -> height on a key's axis from 0 to 1, and ticks of the axis; trials without the key are left out."""
    values = {t["number"]: t["params"][key] for t in done if key in t["params"]}
    plain = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values.values())
    if not plain:
        labels = sorted({str(v) for v in values.values()})
        at = {
            label: i / max(1, len(labels) - 1) if len(labels) > 1 else 0.5 for i, label in enumerate(labels)
        }
        return {n: at[str(v)] for n, v in values.items()}, [(h, label) for label, h in at.items()]
    logarithmic = key in told["log"]
    scaled = {n: np.log(v) if logarithmic else float(v) for n, v in values.items()}
    low, high = min(scaled.values()), max(scaled.values())
    ends = {0.0: min(values.values()), 1.0: max(values.values())}
    if high == low:
        return dict.fromkeys(scaled, 0.5), [(0.5, f"{ends[0.0]:.3g}")]
    return {n: (v - low) / (high - low) for n, v in scaled.items()}, [
        (h, f"{v:.3g}") for h, v in ends.items()
    ]


def parallel(told: Told, done: list[Told]) -> dict[str, Any]:
    """A line a trial through its values; the better, the darker. A key that a trial does not vary breaks its line."""
    objective, keys, names = told["objectives"][0], told["keys"], short(told["keys"])
    values = np.array([t["values"][0] for t in done])
    sign = 1 if objective["direction"] == "maximize" else -1
    order = np.argsort(sign * values, kind="stable")  # the best are drawn last
    rank = np.empty(len(done))
    rank[order] = np.linspace(0, 1, len(done))
    axes_of = [_places(told, key, done) for key in keys]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        colours = matplotlib.colormaps["viridis_r"]
        for i in order:
            heights = [at.get(done[i]["number"], np.nan) for at, _ in axes_of]
            axes.plot(
                range(len(keys)),
                heights,
                "-o",
                ms=3,
                lw=1.1,
                color=colours(rank[i]),
                alpha=0.25 + 0.75 * rank[i],
            )
        for x, (_, ticks) in enumerate(axes_of):
            axes.axvline(x, color="#777777", lw=0.8)
            for height, label in ticks:
                axes.annotate(
                    label[:18],
                    (x, height),
                    xytext=(4, 0),
                    textcoords="offset points",
                    fontsize=7.5,
                    va="center",
                )
        axes.set_xticks(range(len(keys)), [names[key] for key in keys], rotation=20, ha="right")
        axes.set_yticks([])
        axes.set_xlim(-0.2, len(keys) - 0.5)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)

    best = done[int(order[-1])]
    words = ", ".join(f"{key} {number(value)}" for key, value in best["params"].items())
    text = f"Values of {len(done)} trials, darker is better in {objective['title']}; the best has {words}"
    return image(text, max(5.0, 1.5 + 1.3 * len(keys)), draw, 3.4)


def front(told: Told, done: list[Told], i: int, j: int) -> dict[str, Any]:
    """Two objectives against each other; trials that none beats in all are joined."""
    first, second = told["objectives"][i], told["objectives"][j]
    best = sorted((t["values"][j], t["values"][i], t["number"]) for t in done if t["number"] in told["best"])

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(
            [t["values"][j] for t in done],
            [t["values"][i] for t in done],
            "o",
            ms=4.5,
            color="#999999",
            label="other trials",
        )
        axes.plot(
            [x for x, _, _ in best],
            [y for _, y, _ in best],
            "-D",
            ms=6,
            lw=1.2,
            color=CYCLE[4],
            label="on the front",
        )
        for x, y, n in best:
            axes.annotate(str(n), (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8)
        axes.grid()
        axes.set_xlabel(second["title"] + (f" ({second['words']})" if second["words"] else ""))
        axes.set_ylabel(first["title"] + (f" ({first['words']})" if first["words"] else ""))
        figure.legend(loc="outside lower center", ncols=2)

    words = "; ".join(f"trial {n}: {second['title']} {x:.4g}, {first['title']} {y:.4g}" for x, y, n in best)
    return image(f"Front of {first['title']} against {second['title']}. {words}", 5.6, draw, 3.6)


def race(told: Told) -> dict[str, Any]:
    """What every trial had come to at each step or after each fold; those that were pruned end early."""
    shown = [t for t in told["trials"] if t["steps"]]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for trial in shown:
            steps = sorted((int(step), value) for step, value in trial["steps"].items())
            lost = trial["state"] == "pruned"
            axes.plot(
                *zip(*steps, strict=True), ls="-", marker="x" if lost else "o", ms=3.5, lw=0.9,
                color="#999999" if lost else CYCLE[0], alpha=0.8,
            )  # fmt: skip
        axes.grid()
        axes.locator_params(axis="x", integer=True)
        axes.set_xlabel(told["pruner"]["by"][:-1])
        axes.set_ylabel(told["objectives"][0]["title"])

    ended = sum(t["state"] == "pruned" for t in shown)
    return image(
        f"Values on the way of {len(shown)} trials, {ended} of them pruned (crosses)", 6.0, draw, 3.2
    )
