"""The report: one self-contained HTML page made from `report.json` alone.

Guarantees: no network, no scripts, no file beside it; every number on the page stands in `report.json`. What was
measured on generated speech is called synthetic, and a LEGACY protocol says so in every row.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ser.setting import Setting


def write_report(setting: Setting) -> Path:
    """Write `<run>/report.html` from `<run>/report.json`, evaluating first where that is missing.

    Returns:
        Path of the page.
    """
    path = setting.recipe.directory / "report.json"
    if path.is_file():
        report = json.loads(path.read_text())
    else:
        from ser.evaluate import evaluate

        report = evaluate(setting)
    return write_page(report, path.with_name("report.html"))


def write_page(report: dict[str, Any], path: Path) -> Path:
    """Write the page of a report whole: temporary name, sync, rename. A page that shows this report is kept."""
    stamp = _stamp(report)
    if path.is_file() and f'content="{stamp}"' in path.read_text(encoding="utf-8")[:1000]:
        return path
    from ser.report.page import render

    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(render(report, stamp))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return path


def _stamp(report: dict[str, Any]) -> str:
    """Hash of the report and of the code that draws it."""
    content = hashlib.sha256(json.dumps(report).encode())
    for source in sorted(Path(__file__).parent.glob("*.[ph]*")):
        if source.is_file():
            content.update(source.read_bytes())
    return content.hexdigest()[:32]
