"""The report: one self-contained HTML page made from `report.json` alone, and its tables as Markdown.

Guarantees: no network, no scripts, no file that it needs; every number on the page stands in `report.json`. What was
measured on generated speech is called synthetic, and a LEGACY protocol says so in every row.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ser.setting import Setting
from shards import atomic


def write_report(setting: Setting, progress: Callable[[int, int], object] | None = None) -> Path:
    """Write `<run>/report.html` from `<run>/report.json`, evaluating first where that is missing.

    Args:
        progress: Called with (parts of the page done, parts in all).

    Returns:
        Path of the page.
    """
    path = setting.recipe.directory / "report.json"
    if path.is_file():
        report = json.loads(path.read_text())
    else:
        from ser.evaluate import evaluate

        report = evaluate(setting)
    return write_page(report, path.with_name("report.html"), progress)


def write_page(
    report: dict[str, Any], path: Path, progress: Callable[[int, int], object] | None = None
) -> Path:
    """Write the page of a report, and its tables as Markdown beside it. What shows this report already is kept."""
    stamp = _stamp(report)
    tables = path.with_suffix(".md")
    if (
        path.is_file()
        and tables.is_file()
        and f'content="{stamp}"' in path.read_text(encoding="utf-8")[:1000]
    ):
        return path
    from ser.report import markdown, page

    # the page last: it bears the stamp
    atomic.write(tables, markdown.render(report))
    atomic.write(path, page.render(report, stamp, progress))
    return path


def _stamp(report: dict[str, Any]) -> str:
    """Hash of the report and of the code that draws it."""
    content = hashlib.sha256(json.dumps(report).encode())
    for source in sorted(Path(__file__).parent.glob("*.[ph]*")):
        if source.is_file():
            content.update(source.read_bytes())
    return content.hexdigest()[:32]
