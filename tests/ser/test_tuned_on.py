"""Settings that were tuned with a test set in view: refused unless said, found by their speakers, and told in every row."""

import copy

import pytest

from ser.agreement import check_tuning
from ser.facts import declared_tuning
from ser.recipe import Recipe, load
from ser.setting import open_setting
from ser.strict import validate
from shards.errors import UserError
from tests import tiny
from tests.ser.small_recipe import CE, model, trained, values

SEEN = {"selection": "non-nested", "data": "trials on session ses0"}


def test_non_nested_settings_are_refused_under_strict_unless_the_recipe_says_so(tmp_path):
    models = {"m": model(CE)}
    with pytest.raises(UserError, match=r"non-nested\): trials on session ses0") as error:
        load(str(tiny.write_recipe(tmp_path, values(tmp_path, models, tuned_on=SEEN))))
    assert "allow_non_nested: true" in str(error.value)
    for passes in ({"allow_non_nested": True}, {"protocol": {"strictness": "LEGACY"}}):
        assert load(
            str(tiny.write_recipe(tmp_path, values(tmp_path, models, tuned_on=SEEN, **passes)))
        ).tuned_on


def test_speakers_that_are_tested_make_settings_non_nested(tmp_path, tiny_dataset):
    """Whatever `selection` claims, and before the first step."""
    claimed = {"selection": "outside", "data": "two speakers", "speakers": ["tiny/s0", "tiny/s7"]}
    models = {"m": model(CE)}
    with pytest.raises(UserError, match=r"STRICT: .*two speakers \(1 test entry: tiny/s0\)"):
        trained(tmp_path, tiny_dataset, models, tuned_on=claimed)
    allowed = validate(
        Recipe, values(tmp_path, models, tiny_dataset, tuned_on=claimed, allow_non_nested=True), where="test"
    )
    (finding,) = check_tuning(open_setting(allowed))
    assert declared_tuning(open_setting(allowed)) == claimed | {"selection": "non-nested"}
    assert (finding.kind, finding.level, finding.items) == ("non-nested", "note", ("tiny/s0",))
    legacy = values(tmp_path, models, tiny_dataset, {"strictness": "LEGACY"}, tuned_on=claimed)
    (finding,) = check_tuning(open_setting(validate(Recipe, legacy, where="test")))
    assert finding.level == "leak"
    honest = copy.deepcopy(claimed) | {"speakers": ["tiny/s7"]}
    clean = validate(Recipe, values(tmp_path, models, tiny_dataset, tuned_on=honest), where="test")
    assert check_tuning(open_setting(clean)) == []


def test_every_row_says_where_its_settings_come_from():
    from ser.report.words import is_non_nested, settings

    def told(declared: str | None, searched: str = "untuned") -> str:
        values = None if declared is None else {"selection": declared, "data": "a few trials"}
        exposure = {"declared": values, "tuning": searched}
        assert is_non_nested(exposure) == settings(exposure).startswith("non-nested")
        return settings(exposure)

    assert told(None) == "settings as written, not searched here"
    assert told("outside") == "settings chosen on a few trials"
    assert told("nested") == "settings tuned inside each fold: a few trials"
    assert told("non-nested") == "non-nested: settings tuned on a few trials"
    assert told(None, "nested") == "searched inside each fold; other settings as written"
    assert told("outside", "non-nested").startswith("non-nested: searched with sight")
    assert (
        told("non-nested", "nested")
        == "non-nested: searched inside each fold; settings tuned on a few trials"
    )
