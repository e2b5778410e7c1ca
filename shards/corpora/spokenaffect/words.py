"""The sentences: 12 affect words, 6 nouns and 4 templates a language, ASCII throughout.

Endings are shared across the signs on purpose (wonderful / dreadful, formidable / lamentable, upea / kamala): a
listener has to hear the word, not its last syllable.
"""

# word -> strength on the scale of valence; the sign is the sign of valence.
WORDS: dict[str, dict[str, float]] = {
    "en": {
        "wonderful": 1.4, "brilliant": 1.2, "delightful": 1.0, "beautiful": 1.0, "perfect": 0.8, "lovely": 0.6,
        "horrible": -1.4, "disgusting": -1.2, "dreadful": -1.0, "terrible": -1.0, "miserable": -0.8, "gloomy": -0.6,
    },
    "fi": {
        "mahtava": 1.4, "loistava": 1.2, "upea": 1.0, "ihana": 1.0, "mainio": 0.8, "mukava": 0.6,
        "kamala": -1.4, "inhottava": -1.2, "kauhea": -1.0, "karmea": -1.0, "surkea": -0.8, "kurja": -0.6,
    },
    "fr": {
        "magnifique": 1.4, "formidable": 1.2, "superbe": 1.0, "splendide": 1.0, "merveilleux": 0.8, "charmant": 0.6,
        "atroce": -1.4, "affreux": -1.2, "lamentable": -1.0, "sinistre": -1.0, "minable": -0.8, "pitoyable": -0.6,
    },
}  # fmt: skip
NOUNS: dict[str, tuple[str, ...]] = {
    "en": ("garden", "kitchen", "letter", "window", "picture", "market"),
    "fi": ("talo", "kirja", "kuva", "ruoka", "matka", "laulu"),
    "fr": ("jardin", "train", "film", "livre", "salon", "village"),
}
TEMPLATES: dict[str, tuple[str, ...]] = {
    "en": (
        "The {noun} was {word} today.",
        "I find our {noun} quite {word}.",
        "That {noun} looks {word} to me.",
        "Well, this {word} {noun} is new.",
    ),
    "fi": (
        "Tuo {noun} oli {word} eilen.",
        "Minusta {noun} on {word}.",
        "Nyt {noun} on taas {word}.",
        "No, {word} {noun} on uusi.",
    ),
    "fr": (
        "Ce {noun} est {word} ce matin.",
        "Je trouve ce {noun} {word}.",
        "Hier, le {noun} semblait {word}.",
        "Oui, mon {noun} reste {word} ici.",
    ),
}


def sentence(language: str, template: int, noun: int, word: str) -> str:
    """The text of a triple (template, noun, word)."""
    return TEMPLATES[language][template].format(noun=NOUNS[language][noun], word=word)
