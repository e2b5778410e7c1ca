"""What leaking speakers is worth: the same models under speaker-independent folds, under a random split, and folds that STRICT refuses.

Guarantees: nothing but the protocol differs between the rows. The refusal shown is the error that any run would stop
with, not a text of its own.
"""

import json
from dataclasses import dataclass

from launch.display import Display
from launch.run import run
from ser.recipe import load
from shards.errors import UserError

RECIPE = "open-leak"
CLEAN, LEAKING, REFUSED = None, "random", "emobox"


@dataclass(frozen=True)
class Leak:
    """What one model scored with and without its test speakers in training, UA in [0, 1]."""

    model: str
    clean: float
    leaking: float


def demonstrate(
    display: Display,
    recipe: str = RECIPE,
    overrides: dict[str | None, list[str]] | None = None,
    *,
    alone: bool = False,
) -> tuple[list[Leak], str]:
    """Run the three protocols and print them side by side.

    Args:
        display: Where progress and the table go.
        recipe: A recipe with variants `random` and `emobox`.
        overrides: More `key=value` overrides by variant (None is the recipe as it stands).
        alone: In this process, without Ray.

    Returns:
        A row a model, and the message with which STRICT refused EmoBox's folds.

    Raises:
        UserError: The corpus is not there.
        AssertionError: STRICT let the leaking folds pass.
    """
    more = overrides or {}
    scores = {}
    for variant in (CLEAN, LEAKING):
        resolved = load(recipe, more.get(variant, []), variant)
        display.say(f"{resolved.protocol}:")
        run(resolved, display, until="evaluate", alone=alone)
        report = json.loads((resolved.directory / "report.json").read_text())
        scores[variant] = {
            name: report["models"][name]["scores"]["labels"]["pooled"]["ua"]["value"]
            for name in report["order"]
        }
    rows = [Leak(name, value, scores[LEAKING][name]) for name, value in scores[CLEAN].items()]
    display.table(
        "EmoDB, 7 classes: UA, pooled over folds, in %",
        ["model", "no test speaker in training", "random split (LEGACY)", "leak"],
        [
            (
                row.model,
                f"{100 * row.clean:.1f}",
                f"{100 * row.leaking:.1f}",
                f"{100 * (row.leaking - row.clean):+.1f}",
            )
            for row in rows
        ],
    )
    refusal = ""
    try:
        run(load(recipe, more.get(REFUSED, []), REFUSED), display, until="train", alone=alone)
    except UserError as error:
        refusal = str(error)
    assert refusal, "EmoBox's folds share all speakers, and STRICT let them pass"
    display.say(f"EmoBox's folds under STRICT:\nerror: {refusal}")
    return rows, refusal
