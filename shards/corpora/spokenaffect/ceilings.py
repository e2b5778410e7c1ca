"""What the best possible system scores on SpokenAffect, from the law alone: `python -m shards.corpora.spokenaffect.ceilings`.

Derivation, s = sign of valence, l = latent arousal (+-1, fair coins, independent), A = l + N(0, sigma), sigma = 0.6:

- Text shows the word, hence s without error, and nothing of l: P(v) = 1, P(a) = 1/2.
- Prosody shows at most A, and nothing of s: P(v) = 1/2. The likelihood ratio of l = +1 to l = -1 is exp(2 A / sigma^2),
  so the best decision is the sign of A, right with P(a) = Phi(1 / sigma) = Phi(1 / 0.6) = 0.952.
- The class is the pair (s, l). The two observations are independent given the class, so the best decision decides
  each on its own and is right with P(v) P(a); by symmetry every class has that recall, so it is the UA as well:
  text 1/2, prosody P(a) / 2, fusion P(a).
- A label is redrawn from all four classes with probability q = 0.2, blindly. A decision right with probability p on the
  clean class is then right with (1 - q) p + q / 4 on the label; the recall of every class is that too, for labels
  stay balanced. A sign agrees with a redrawn label half of the time: (1 - q) p + q / 2. Since 1 - q > 0, the best
  decision stays the same.

The words' exact sampling (a finite test set draws unequal classes) is left out: `monte_carlo` measures what it does.
V, A, D have no ceiling here. Gives up nothing else: what a system scores above these lines is chance or a leak.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from shards.corpora.spokenaffect.law import AROUSAL_NOISE, CLASSES, REDRAWN, SCALE, affect
from shards.corpora.spokenaffect.words import WORDS

SOURCES = ("text", "prosody", "fusion")


@dataclass(frozen=True)
class Ceiling:
    """Best expected scores of one source of information, in [0, 1]."""

    source: str
    against: str  # "clean" or "noisy" labels
    valence: float  # accuracy on the sign of valence
    arousal: float  # accuracy on the sign of latent arousal
    ua: float  # unweighted average recall of the four classes


def ceilings(
    arousal_noise: float = AROUSAL_NOISE, redrawn: float = REDRAWN
) -> dict[tuple[str, str], Ceiling]:
    """Ceilings by (source, against), from the formulas above."""
    heard = float(ndtr(1 / arousal_noise))
    right = {"text": (1.0, 0.5), "prosody": (0.5, heard), "fusion": (1.0, heard)}
    result = {}
    for source, (v, a) in right.items():
        result[source, "clean"] = Ceiling(source, "clean", v, a, v * a)
        q = redrawn
        noisy = ((1 - q) * v + q / 2, (1 - q) * a + q / 2, (1 - q) * v * a + q / len(CLASSES))
        result[source, "noisy"] = Ceiling(source, "noisy", *noisy)
    return result


def monte_carlo(samples: int, seed: int = 0) -> dict[tuple[str, str], Ceiling]:
    """The same table measured: the law draws, the best decisions decide, their scores are counted.

    The unknown sign is guessed as +1; by symmetry no guess is better.
    """
    strengths = np.array([s for words in WORDS.values() for s in words.values()])
    strength = np.random.default_rng(seed).choice(strengths, samples)
    drawn = affect(seed, "monte-carlo", strength)
    heard = np.where(drawn["arousal"] > 0, 1, -1)
    said = np.where(strength > 0, 1, -1)
    guess = np.ones(samples, dtype=int)
    decisions = {"text": (said, guess), "prosody": (guess, heard), "fusion": (said, heard)}
    return {
        (source, against): _score(source, against, v, a, drawn["clean" if against == "clean" else "label"])
        for source, (v, a) in decisions.items()
        for against in ("clean", "noisy")
    }


def _score(source: str, against: str, v: np.ndarray, a: np.ndarray, classes: np.ndarray) -> Ceiling:
    positive = np.isin(classes, [CLASSES.index("happy"), CLASSES.index("calm")])
    aroused = np.isin(classes, [CLASSES.index("angry"), CLASSES.index("happy")])
    table = np.array(
        [[CLASSES.index("sad"), CLASSES.index("angry")], [CLASSES.index("calm"), CLASSES.index("happy")]]
    )
    predicted = table[(v > 0).astype(int), (a > 0).astype(int)]
    recalls = [np.mean(predicted[classes == c] == c) for c in range(len(CLASSES))]
    return Ceiling(
        source,
        against,
        float(np.mean((v > 0) == positive)),
        float(np.mean((a > 0) == aroused)),
        float(np.mean(recalls)),
    )


def main() -> None:
    """Print the table in per cent, with a Monte Carlo column beside each formula."""
    assert SCALE[0] < 0 < SCALE[1]  # clipping A keeps its sign
    measured = monte_carlo(200_000)
    print("SpokenAffect (synthetic): ceilings in %, formula (Monte Carlo, 200,000 draws)")
    print(f"{'source':8} {'labels':6} {'valence sign':>16} {'arousal sign':>16} {'UA of 4':>16}")
    for key, c in ceilings().items():
        m = measured[key]
        cells = (
            f"{100 * x:7.1f} ({100 * y:5.1f})"
            for x, y in ((c.valence, m.valence), (c.arousal, m.arousal), (c.ua, m.ua))
        )
        print(f"{c.source:8} {c.against:6} " + " ".join(f"{cell:>16}" for cell in cells))


if __name__ == "__main__":
    main()
