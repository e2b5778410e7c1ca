"""Models of some rows, and teachers weighed by language: who is trained on, who chooses, who answers for whom."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from ser.build import gather_ingredients
from ser.job import Job, identity
from ser.loss import Languages, Objective, Supervision
from ser.models.base import ModelOutput
from ser.objectives import kl
from ser.recipe import Recipe, Term
from ser.setting import Setting, open_setting, supervision
from ser.strict import validate
from shards.batch import Batch
from shards.errors import UserError
from shards.slots import Slot
from tests import tiny
from tests.ser.worlds import ALONE

FOLD = "session-ses0"
LABELS = [{"loss": "cross_entropy"}]


def model(rows: dict | None = None, objective: Any = LABELS, **changes: Any) -> dict[str, Any]:
    given = {"rows": rows} if rows else {}
    return {
        "role": "teacher",
        "model": tiny.CONV,
        "objective": objective,
        "train": tiny.training(2),
        **given,
        **changes,
    }


def setting(folder, dataset: str, models: dict, **changes: Any) -> Setting:
    return open_setting(
        validate(Recipe, tiny.recipe_values(folder, dataset, models, **changes), where="test")
    )


def languages(s: Setting, rows: np.ndarray) -> set[str]:
    return {s.dataset.languages[code] for code in s.dataset.language[rows]}


def test_a_monolingual_model_learns_from_and_is_chosen_by_its_language_alone(tiny_dataset, tmp_path):
    s = setting(tmp_path, tiny_dataset, {"en": model({"language": ["en"]}), "both": model()})
    x, whole = (gather_ingredients(s, Job(FOLD, name, 0), ALONE) for name in ("en", "both"))
    assert languages(s, x.rows) == languages(s, x.choosing) == {"en"}
    assert languages(s, x.fold.test) == languages(s, x.fold.dev) == {"en", "fi"}, (
        "all are answered and scored"
    )
    assert len(x.rows) * 2 == len(whole.rows) and (whole.choosing == whole.fold.dev).all()
    heard = {name.split("/")[1] for name in x.exposure.fit | x.exposure.select}
    assert heard == {"s3", "s5", "s7"} and x.exposure.fit < whole.exposure.fit
    shown, rows = supervision(s, s.folds[FOLD], "en", "none")
    assert (rows == x.rows).all() and (shown.classes[np.setdiff1d(s.folds[FOLD].train, rows)] == -1).all()


def test_unlabelled_speech_is_of_the_models_rows_too(tiny_dataset, tmp_path):
    s = setting(tmp_path, tiny_dataset, {"en": model({"language": ["en"]}, data="all", labelled=4)})
    x = gather_ingredients(s, Job(FOLD, "en", 0), ALONE)
    assert languages(s, x.rows) == {"en"} and len(x.rows) == 16
    assert (x.objective.supervision.classes >= 0).sum() == 4


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"language": ["sv"]}, r"language 'sv' is in no utterance"),
        ({"speaker": ["s7"]}, r"the dev set of fold session-ses0 has no utterance of speaker s7"),
        ({"speaker": ["s0"]}, r"the train set of fold session-ses0 has no utterance of speaker s0"),
        ({"tongue": ["en"]}, r"models.m.rows: give \{field: \[values\]\}"),
        ({"language": []}, r"models.m.rows: give"),
    ],
)
def test_rows_that_are_not_there_are_refused(tiny_dataset, tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        gather_ingredients(setting(tmp_path, tiny_dataset, {"m": model(rows)}), Job(FOLD, "m", 0), ALONE)


def test_what_says_nothing_stands_in_no_identity(tiny_dataset, tmp_path):
    learns = [*LABELS, {"loss": "kl", "teacher": "t"}]
    models = {"t": model(), "s": model(objective=learns, role="student")}
    s = setting(tmp_path, tiny_dataset, models)
    told = identity(s, Job(FOLD, "s", 0))
    assert (
        not {"rows", "teacher_fold"} & told["model"].keys()
        and not {"source", "mode"} & told["targets"].keys()
    )
    other = copy.deepcopy(models)
    other["s"]["rows"] = {"language": ["en"]}
    changed = identity(setting(tmp_path, tiny_dataset, other), Job(FOLD, "s", 0))
    assert changed["model"]["rows"] == {"language": ["en"]} and changed["labels"] != told["labels"]
    online = identity(
        setting(tmp_path, tiny_dataset, models, targets={"source": "online"}), Job(FOLD, "s", 0)
    )
    assert online["targets"]["source"] == "online"


# -- teachers weighed by language


class Source:
    """A teacher whose answers are drawn once; some are missing."""

    def __init__(self, seed: int, n: int):
        rng = np.random.default_rng(seed)
        self.logits, self.there = rng.standard_normal((n, 4)), rng.random(n) < 0.8

    def state(self, rows, views=0):
        return self.there[rows].astype(np.uint8)


def test_an_oracle_asks_the_teacher_of_the_rows_own_language():
    n, rng = 24, np.random.default_rng(0)
    sources = {name: Source(i, n) for i, name in enumerate(("en", "fi", "fr"))}
    of_row = rng.integers(0, 3, n)
    term = Term(loss="multi_kl", teachers=list(sources), weights="language", temperature=5.0)
    labels = Supervision(np.full(n, -1), None, np.full((n, 3), np.nan, np.float32), np.ones(4, np.float32))
    spoken = Languages(of_row, {"en": 0, "fi": 1, "fr": 2})
    objective = Objective([term], labels, sources, languages=spoken)  # pyright: ignore
    rows = np.arange(n)
    logits = torch.from_numpy(rng.standard_normal((n, 4)))
    output = ModelOutput(
        logits, None, torch.zeros(n, 2, dtype=torch.float64), torch.ones(n, dtype=torch.bool)
    )
    batch = Batch(rows, rows * 0, [""] * n, torch.ones(n, dtype=torch.bool), torch.ones(n, dtype=torch.int64))
    for name, source in sources.items():
        batch.targets[name] = {"logits": torch.from_numpy(source.logits)}
        batch.target_present[name] = torch.from_numpy(source.there)
    totals = objective.totals([Slot(rows, rows * 0)])
    _, shares = objective.slot_loss(output, batch, totals, 1.0)
    own = [list(sources.values())[code] for code in of_row]
    there = np.array([source.there[i] for i, source in enumerate(own)])
    answers = torch.from_numpy(np.stack([source.logits[i] for i, source in enumerate(own)]))
    expected = kl(logits, answers, 5.0)[torch.from_numpy(there)]
    assert totals[term.name] == there.sum(), "a row whose own teacher is silent is in no sum"
    assert shares[term.name].item() == pytest.approx(expected.mean().item(), rel=1e-12)


def oracle(names: list[str]) -> list[dict]:
    return [*LABELS, {"loss": "multi_kl", "teachers": names, "weights": "language"}]


def test_a_teacher_without_one_language_is_refused_for_an_oracle(tiny_dataset, tmp_path):
    for rows in (None, {"language": ["en", "fi"]}, {"gender": ["male"]}):
        models = {
            "a": model({"language": ["en"]}),
            "b": model(rows),
            "s": model(objective=oracle(["a", "b"])),
        }
        with pytest.raises(UserError, match=r"needs teachers of one language each; give\s+models.b `rows"):
            setting(tmp_path, tiny_dataset, models)


def test_a_language_without_a_teacher_is_refused_by_name(tiny_dataset, tmp_path):
    from tests.faults import train_one

    en = {"language": ["en"]}
    models = {"a": model(en), "b": model(en), "s": model(objective=oracle(["a", "b"]), role="student")}
    values = tiny.recipe_values(tmp_path, tiny_dataset, models, targets={"source": "online"})
    for name in ("a", "b"):
        train_one(values, (FOLD, name, 0))
    with pytest.raises(UserError, match=r"no teacher for 16 training utterances of fi\n"):
        gather_ingredients(open_setting(Recipe.model_validate(values)), Job(FOLD, "s", 0), ALONE)
