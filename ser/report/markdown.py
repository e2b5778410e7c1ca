"""The report's tables as Markdown: `report.md` beside the page, for a paper's draft, an issue or a results folder.

Guarantees: the same numbers and words as on the page (`ser.report.tables`, `ser.report.layout`); no figures.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from ser.report import layout, words
from ser.report.page import protocol_lines, sentences
from ser.report.tables import (
    comparison_rows,
    condition_tables,
    group_tables,
    relative_rows,
    result_tables,
    sign_table,
)

# The page's typography in ASCII, so that the tables can be pasted anywhere.
PLAIN = str.maketrans({words.MINUS: "-", words.NONE: "-", "\u00a0": " "})


def render(report: dict[str, Any]) -> str:
    """The whole text."""
    told = sentences(report, comparison_rows(report))
    legacy = " (LEGACY)" if report["protocol"]["strictness"] == "LEGACY" else ""
    parts = [f"# {report['name']}{legacy}", report["about"], "\n".join(f"- {text}" for text in told)]
    parts.append("\n".join(f"- {question}: {answer}" for question, answer in protocol_lines(report)))
    for table in result_tables(report):
        heads = ["model", "what it is", "parameters", *map(words.title, table["columns"])]
        heads += ["ceiling UA"] if table["ceilings"] else []
        rows = [
            [
                row["name"] + legacy,
                f"{row['role']}: {row['kind']}",
                row["parameters"],
                *map(_cell, row["cells"]),
            ]
            + ([row["ceiling"]] if table["ceilings"] else [])
            for row in table["rows"]
        ]
        parts += [f"## Scores against {table['told']}", _table(heads, rows)]
    for table in sign_table(report):
        heads = ["model", "valence sign", "its ceiling", "arousal sign", "its ceiling"]
        rows = [
            [row["name"], *(x for c in row["cells"][:2] for x in (_cell(c), c["ceiling"]))]
            for row in table["rows"]
        ]
        parts += [f"## Signs against {table['told']}", _table(heads, rows)]
    for grid in layout.grid_tables(report):
        rows = [[row["name"], *map(_grid_cell, row["cells"])] for row in grid["rows"]]
        parts += [f"## {grid['title']}, against {grid['told']}", _table(["", *grid["columns"]], rows)]
    for depth in layout.depth_figures(report):
        rows = [
            [row["series"], row["depth"], row["name"], *map(_cell, row["cells"])] for row in depth["rows"]
        ]
        parts += [f"## {depth['title']}", _table(["series", "depth", "model", *depth["columns"]], rows)]
    for table in layout.subset_tables(report):
        rows = [[row["name"], *map(_cell, row["cells"])] for row in table["rows"]]
        parts += [
            f"## Subsets: {table['metric']} against {table['told']}",
            _table(["model", "all", *table["names"]], rows),
        ]
    for table in group_tables(report):
        rows = [[row["name"], *map(_cell, row["cells"])] for row in table["rows"]]
        parts += [
            f"## {words.title(table['metric'])} by {table['by'].removeprefix('extra.')}",
            _table(["model", *table["columns"]], rows),
        ]
    for table in condition_tables(report):
        rows = [[row["name"], *map(_cell, row["cells"])] for row in table["rows"]]
        parts += [
            f"## Robustness: {words.title(table['metric'])}",
            _table(["model", *table["columns"]], rows),
        ]
    if report["comparisons"]:
        parts += ["## Comparisons", _comparisons(report)]
    if relative := relative_rows(report):
        heads = ["system, reference", "metric", "reference", "system", "relative gain", "stated", "by"]
        rows = [
            [
                f"{row['system']}, {row['reference']}", words.title(row["metric"]), row["second"], row["first"],
                row["gain"], row["stated"], row["source"],
            ]
            for row in relative
        ]  # fmt: skip
        parts += ["## Relative gains", _table(heads, rows)]
    text = "\n\n".join(part for part in parts if part) + "\n"
    return text.translate(PLAIN)


def _comparisons(report: dict[str, Any]) -> str:
    rows = []
    for row in comparison_rows(report):
        found, metric = row["result"], row["metric"]
        if found:
            value = words.number(found["difference"], metric, signed=True)
            difference = _cell({"value": value, "interval": words.interval(found, metric, signed=True)})
            p = words.p_value(found["p"])
        else:
            difference = p = words.NONE
        rows.append([row["label"], words.title(metric), difference, p, row["verdict"]])
    return _table(["system - reference", "metric", "difference", "p, speakers", "verdict"], rows)


def _cell(cell: dict[str, Any]) -> str:
    return f"{cell['value']} ({cell['interval']})" if cell["interval"] else cell["value"]


def _grid_cell(cell: dict[str, Any]) -> str:
    shown = [f"{v['metric']} {_cell(v)}" for v in cell["values"]]
    return "<br>".join(shown) or words.NONE


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(x).replace("|", "\\|") for x in line) + " |" for line in lines)
