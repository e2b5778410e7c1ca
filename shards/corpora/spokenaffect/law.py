"""The law of SpokenAffect: what is drawn for each utterance, as a pure function of (utterances, seed).

    sign       of valence: the affect word's, +1 or -1
    latent     arousal, +1 or -1, each with probability 1/2, independent of the word
    clean      emotion: the quadrant of (sign, latent), before any noise
    A          = latent + N(0, 0.6); moves rate, F0 level and range, loudness, spectral tilt, and nothing else does
    V          = strength of the word + N(0, 0.4)
    D          = (V + 2 A) / 3 + N(0, 0.3); V, A and D are clipped to [-3, 3] after this
    label      = clean, or with probability 0.2 a class drawn again from all four (so 15 % of labels are wrong)

Each draw is a hash of (seed, split, number of the utterance in its split, name of the draw): a smaller corpus draws
the same first utterances. Triples (template, noun, word) of train, dev and test are disjoint while every word, noun
and template occurs in all three splits. Gives up: nothing in the text tells arousal, and no prosody tells valence,
which no human speech obeys.
"""

import hashlib
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.special import ndtri

from shards.corpora.spokenaffect.voices import SPLITS, Voice, of_split
from shards.corpora.spokenaffect.words import NOUNS, TEMPLATES, WORDS, sentence

CLASSES = ("angry", "happy", "sad", "calm")
QUADRANT = {(-1, 1): 0, (1, 1): 1, (-1, -1): 2, (1, -1): 3}
AROUSAL_NOISE = 0.6
VALENCE_NOISE = 0.4
DOMINANCE_NOISE = 0.3
REDRAWN = 0.2
SCALE = (-3.0, 3.0)
SHARES = {"train": 0.75, "dev": 0.05, "test": 0.20}
# Frames (template, noun) of a word, 24 of them: how many belong to each split.
FRAMES = {"train": 14, "dev": 2, "test": 8}

# What one unit of A does. Class means lie two units apart: 10 dB and a factor 1.3 in rate, so a view of +-3 dB and
# +-5 % in speed moves an utterance by at most a third of that.
RATE_WORDS_PER_MINUTE, RATE_LOG_STEP = 163.0, 0.13
PITCH_STEP, RANGE_STEP = 15.0, 17.0
LEVEL_DB, LEVEL_STEP_DB, MICROPHONE_DB = -33.0, 5.0, 0.8
TILT_STEP = 0.25
AUDIBLE = 2.5  # A beyond this sounds no different: espeak's parameters end at 0 and 99


@dataclass(frozen=True)
class Drawn:
    """Everything the law says about one utterance."""

    key: str
    split: str
    voice: Voice
    text: str
    word: str
    template: int
    noun: int
    latent: int
    valence: float
    arousal: float
    dominance: float
    clean: str
    label: str
    rate: int
    pitch: int
    range: int
    level_db: float
    tilt: float


def uniform(seed: int, split: str, index: np.ndarray, draw: str) -> np.ndarray:
    """Uniform (n,) in (0, 1): splitmix64's finaliser over a sha256 of (seed, split, draw) plus the index (n,)."""
    salt = int.from_bytes(
        hashlib.sha256(f"spokenaffect/{seed}/{split}/{draw}".encode()).digest()[:8], "little"
    )
    with np.errstate(over="ignore"):
        z = np.uint64(salt) + (index.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def affect(seed: int, split: str, strength: np.ndarray) -> dict[str, np.ndarray]:
    """Draw latent, V, A, D, clean and noisy class for words of the given signed strength.

    Args:
        seed: Seed of the corpus.
        split: Name of the split, part of the hash.
        strength: (n,) signed strengths; position i is utterance i of the split.

    Returns:
        Arrays (n,): latent (+-1 int), valence, arousal, dominance (float, clipped to SCALE), clean, label (class codes).
    """
    index = np.arange(len(strength))

    def u(name: str) -> np.ndarray:
        return uniform(seed, split, index, name)

    latent = np.where(u("latent") < 0.5, -1, 1)
    arousal = latent + AROUSAL_NOISE * ndtri(u("arousal"))
    valence = strength + VALENCE_NOISE * ndtri(u("valence"))
    dominance = (valence + 2 * arousal) / 3 + DOMINANCE_NOISE * ndtri(u("dominance"))
    codes = np.array([[QUADRANT[s, a] for a in (-1, 1)] for s in (-1, 1)])
    clean = codes[(strength > 0).astype(int), (latent > 0).astype(int)]
    again = np.minimum((u("class") * len(CLASSES)).astype(int), len(CLASSES) - 1)
    label = np.where(u("redrawn") < REDRAWN, again, clean)
    clipped = {
        k: np.clip(v, *SCALE) for k, v in dict(valence=valence, arousal=arousal, dominance=dominance).items()
    }
    return {"latent": latent, "clean": clean, "label": label, **clipped}


@cache
def frames(language: str, word: str, split: str) -> tuple[tuple[int, int], ...]:
    """The (template, noun) pairs in which a split speaks a word. Independent of the corpus's seed.

    Frame (t, n) of word w has rank (6 t + n + 7 w) mod 24, so every rank meets every template and noun over the words.
    """
    nouns, count = len(NOUNS[language]), len(TEMPLATES[language]) * len(NOUNS[language])
    shift = 7 * list(WORDS[language]).index(word)
    start = sum(FRAMES[s] for s in SPLITS[: SPLITS.index(split)])
    ranks = [(start + k) % count for k in range(FRAMES[split])]
    # 5 is prime to 24: neighbouring ranks are spread over templates and nouns.
    return tuple(divmod((5 * rank + shift) % count, nouns) for rank in ranks)


def counts(utterances: int) -> dict[str, int]:
    """Utterances a split: 4,500 / 300 / 1,200 of 6,000; dev takes what rounding leaves."""
    train, test = int(utterances * SHARES["train"]), int(utterances * SHARES["test"])
    return {"train": train, "dev": utterances - train - test, "test": test}


def sound(arousal: np.ndarray, microphone: np.ndarray) -> dict[str, np.ndarray]:
    """Prosody of A (n,): espeak's rate, pitch and range, and level in dBFS and tilt, applied to the samples afterwards.

    `microphone` (n,) is a level of the speaker's own in units of MICROPHONE_DB.
    """
    a = np.clip(arousal, -AUDIBLE, AUDIBLE)
    return {
        "rate": np.rint(RATE_WORDS_PER_MINUTE * np.exp(RATE_LOG_STEP * a)).astype(int),
        "pitch": np.rint(50 + PITCH_STEP * a).astype(int),
        "range": np.rint(50 + RANGE_STEP * a).astype(int),
        "level_db": np.round(LEVEL_DB + LEVEL_STEP_DB * a + MICROPHONE_DB * microphone, 2),
        "tilt": np.round(TILT_STEP * a, 3),
    }


def draw(utterances: int = 6000, seed: int = 0) -> list[Drawn]:
    """The whole corpus on paper: train, then dev, then test; the voices of a split take turns."""
    return [d for split, n in counts(utterances).items() for d in _draw_split(split, n, seed)]


def _draw_split(split: str, n: int, seed: int) -> list[Drawn]:
    voices = of_split(split)
    index = np.arange(n)
    speakers = [voices[i % len(voices)] for i in index]
    vocabulary = {language: tuple(words) for language, words in WORDS.items()}
    pick, place = uniform(seed, split, index, "word"), uniform(seed, split, index, "frame")
    words = [vocabulary[v.language][int(u * len(vocabulary[v.language]))] for v, u in zip(speakers, pick)]
    places = [frames(v.language, w, split)[int(u * FRAMES[split])] for v, w, u in zip(speakers, words, place)]
    strength = np.array([WORDS[v.language][w] for v, w in zip(speakers, words)], dtype=np.float64)
    drawn = affect(seed, split, strength)
    microphone = ndtri(uniform(seed, split, index % len(voices), "microphone"))
    prosody = sound(drawn["arousal"], microphone)
    return [
        Drawn(
            key=f"spokenaffect-{split}-{i:06d}",
            split=split,
            voice=speakers[i],
            text=sentence(speakers[i].language, *places[i], words[i]),
            word=words[i],
            template=places[i][0],
            noun=places[i][1],
            latent=int(drawn["latent"][i]),
            valence=round(float(drawn["valence"][i]), 4),
            arousal=round(float(drawn["arousal"][i]), 4),
            dominance=round(float(drawn["dominance"][i]), 4),
            clean=CLASSES[drawn["clean"][i]],
            label=CLASSES[drawn["label"][i]],
            rate=int(prosody["rate"][i]),
            pitch=int(prosody["pitch"][i]),
            range=int(prosody["range"][i]),
            level_db=float(prosody["level_db"][i]),
            tilt=float(prosody["tilt"][i]),
        )
        for i in range(n)
    ]
