"""A run read without the code under test: predictions and corpus joined by other means, and scores by scikit-learn."""

import numpy as np
import pyarrow.parquet as pq
from scipy.special import softmax
from sklearn import metrics as sk

from tests.ser.fake_run import CLASSES
from tests.ser.small_dataset import number

FOLDS = ("fold-1", "fold-2", "fold-3")


class Second:
    """The run read without the code under test: one dict an utterance, straight from files and the corpus."""

    def __init__(self, setting, data):
        self.setting, self.data = setting, data
        self.place = dict(zip(setting.dataset.keys(), number(setting.dataset), strict=True))

    def answers(self, model: str, seed: int, split: str = "test", folds=FOLDS) -> list[dict]:
        out = []
        for fold in folds:
            path = (
                self.setting.recipe.directory
                / "folds"
                / fold
                / model
                / f"seed-{seed}"
                / "predictions.parquet"
            )
            for row in pq.read_table(path).to_pylist():
                if row["split"] == split:
                    facts = self.data[self.place[row["key"]]]
                    p = None if row["logits"] is None else softmax(np.array(row["logits"], float))
                    out.append({**facts, **row, "p": p, "fold": fold, "clean": facts["extra"]["clean_label"]})
        return out

    def truth(self, rows, against: str = "label"):
        return np.array([CLASSES.index(row[against]) for row in rows])


def guesses(rows) -> np.ndarray:
    return np.array([row["p"].argmax() for row in rows])


def posteriors(rows) -> np.ndarray:
    return np.stack([row["p"] for row in rows])


def uar(truth, guess) -> float:
    return sk.recall_score(truth, guess, average="macro")


def lin(x, y) -> float:
    x, y = np.asarray(x, float), np.asarray(y, float)
    return 2 * np.cov(x, y, bias=True)[0, 1] / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)
