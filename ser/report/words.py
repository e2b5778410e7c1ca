"""How the page says numbers: scales, intervals, sizes, verdicts. Pure text."""

from typing import Any

from ser.scoring import LOWER_IS_BETTER

NONE = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
ALPHA = 0.05

# name -> (title, what it is, factor, decimals)
METRICS: dict[str, tuple[str, str, float, int]] = {
    "ua": ("UA", "unweighted accuracy: the mean of the classes' recalls, in %", 100, 1),
    "wa": ("WA", "weighted accuracy: the share of right answers, in %", 100, 1),
    "macro_f1": ("macro F1", "mean over classes of the F1 score, in %", 100, 1),
    "ccc": ("CCC", "concordance correlation, mean over the rated dimensions, 1 is perfect", 1, 2),
    "ccc_valence": ("CCC valence", "concordance correlation of valence", 1, 2),
    "ccc_arousal": ("CCC arousal", "concordance correlation of arousal", 1, 2),
    "ccc_dominance": ("CCC dominance", "concordance correlation of dominance", 1, 2),
    "ece": ("ECE", "expected calibration error, in %: 0 when the model is as often right as it says", 100, 1),
    "brier": ("Brier", "squared error of the posteriors, 0 best, 2 worst", 1, 3),
    "nll": ("NLL", "negative log likelihood of the true class, in nats", 1, 3),
    "entropy": ("entropy", "mean entropy of the posteriors, in nats", 1, 3),
    "soft_nll": ("soft NLL", "cross entropy to the distribution of the raters' votes, in nats", 1, 3),
    "valence_sign": ("valence sign", "share of right answers to: positive or negative valence, in %", 100, 1),
    "arousal_sign": ("arousal sign", "share of right answers to: high or low arousal, in %", 100, 1),
}


def title(metric: str) -> str:
    """A metric's name in a table head."""
    return METRICS[metric][0]


def number(value: float | None, metric: str, signed: bool = False) -> str:
    """A value in the metric's scale: 0.7694 of ua is "76.9"; a difference carries its sign."""
    if value is None:
        return NONE
    _, _, factor, decimals = METRICS[metric]
    # adding 0.0 after rounding makes a negative zero a plain one
    scaled = round(value * factor, decimals) + 0.0
    text = f"{scaled:+.{decimals}f}" if signed and scaled else f"{scaled:.{decimals}f}"
    return text.replace("-", MINUS)


def percent(share: float | None) -> str:
    """A relative gain in whole per cent, with its sign."""
    return NONE if share is None else f"{100 * share:+.0f} %".replace("-", MINUS)


def interval(score: dict[str, Any] | None, metric: str, signed: bool = False) -> str:
    """ "71.6 to 82.3", or nothing where there is no interval."""
    if not score or score.get("low") is None:
        return ""
    return f"{number(score['low'], metric, signed)} to {number(score['high'], metric, signed)}"


def cell(score: dict[str, Any] | None, metric: str) -> dict[str, str]:
    """A table cell: value, interval, and why there is none."""
    if not score:
        return {"value": NONE, "interval": "", "reason": ""}
    return {
        "value": number(score.get("value"), metric),
        "interval": interval(score, metric),
        "reason": score.get("reason") or "",
    }


def p_value(p: float | None) -> str:
    """A p-value with two digits, very small ones as a bound."""
    if p is None:
        return NONE
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.01 else f"{p:.2f}"


def significant(found: dict[str, Any]) -> bool:
    """Whether the test and its interval exclude a difference of zero."""
    return found["p"] is not None and found["p"] <= ALPHA and found["low"] is not None


def verdict(row: dict[str, Any], permuted: bool) -> tuple[str, str]:
    """What a comparison shows, in words, and a class for its colour: better, worse or none.

    Args:
        row: An entry of the report's comparisons.
        permuted: Whether the system learned from permuted targets, so that it must not gain.
    """
    found = row["result"]
    if found is None:
        return f"not compared: {row['reason']}", "none"
    if found["difference"] is None or found["p"] is None or found["low"] is None:
        return f"undecided: {found['reason']}", "none"
    gain = found["difference"] * (-1 if row["metric"] in LOWER_IS_BETTER else 1)
    if not significant(found):
        return "no difference shown" + (", as it should be with permuted targets" if permuted else ""), "none"
    if gain > 0:
        return "better" + (", which permuted targets should not be" if permuted else ""), "better"
    return "worse", "worse"


SEARCHED = {
    "nested": "searched inside each fold",
    "outside": "searched on voices of no test",
    "non-nested": "searched with sight of a test set",
}


def is_non_nested(exposure: dict[str, Any]) -> bool:
    """Whether a test set was in view when the settings were made."""
    declared = exposure["declared"] or {}
    return "non-nested" in (exposure["tuning"], declared.get("selection"))


def settings(exposure: dict[str, Any]) -> str:
    """Where a model's hyper-parameters come from; what was tuned on a test set begins with "non-nested"."""
    declared, searched = exposure["declared"], SEARCHED.get(exposure["tuning"])
    if declared is None:
        text = "settings as written, not searched here" if searched is None else "other settings as written"
    else:
        how = {"nested": "tuned inside each fold: ", "outside": "chosen on ", "non-nested": "tuned on "}
        text = f"settings {how[declared['selection']]}{declared['data']}"
    text = text if searched is None else f"{searched}; {text}"
    return f"non-nested: {text}" if is_non_nested(exposure) else text


def settings_short(exposure: dict[str, Any]) -> str:
    """The same in two words, for a row."""
    if is_non_nested(exposure):
        return "non-nested"
    ways = {"nested": "nested settings", "outside": "settings from elsewhere"}
    declared = exposure["declared"] or {}
    return ways.get(declared.get("selection") or exposure["tuning"], "settings as written")


def count(value: float | None) -> str:
    """A number of parameters: 59.3 k, 1.2 M."""
    if value is None:
        return NONE
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:g}"


def times(factor: float) -> str:
    """How many times faster than speech a real-time factor is."""
    faster = 1 / factor
    return f"{faster:,.0f} times" if faster >= 10 else f"{faster:.1f} times"


def size(value: float) -> str:
    """Bytes as kB or MB."""
    return f"{value / 1e6:.3g} MB" if value >= 1e6 else f"{value / 1e3:.3g} kB"


def duration(seconds: float | None) -> str:
    """Seconds as "12 s", "3 min 20 s" or "2 h 5 min"."""
    if seconds is None:
        return NONE
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def hours(value: float) -> str:
    """Hours of speech; little of it in minutes or seconds."""
    if value >= 1:
        return f"{value:.1f} h"
    return f"{value * 60:.1f} min" if value * 60 >= 1 else f"{value * 3600:.0f} s"


def plural(number: int, one: str, many: str = "") -> str:
    """ "1 fold", "3 folds"."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def spread(values: list[float]) -> str:
    """One number where all are equal, else "6 to 8"."""
    if not values:
        return NONE
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
