"""EmoDB, the Berlin Database of Emotional Speech: German, 10 actors, 10 sentences, 7 emotions, 535 utterances.

Burkhardt, Paeschke, Rolfes, Sendlmeier, Weiss, "A Database of German Emotional Speech", Interspeech 2005.
Licence: free download for research; no formal text comes with the mirrors.

Layouts: the original (`wav/03a01Fa.wav`, with `erkennung.txt` where it was kept) and `audio/*.flac` + `labels.tsv`.
Names: 1-2 speaker, 3-5 sentence, 6 emotion (initial of the German word: Wut, Langeweile, Ekel, Angst, Freude,
Trauer, Neutral), 7 take. `extra`: code, sentence, take, and where the files have it the share of 20 listeners who
recognised the emotion (recognised_pct) and found it natural (natural_pct); 80 and 60 were the bar for publication.
Traps: EmoBox's five folds share all ten speakers. A mirror (22.05 kHz, all files 2.0 s) has wrong labels.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from shards.corpora._common import corpus_root, number, read_named, rows_of
from shards.utterance import Utterance, make_key

LABELS = {
    "W": "anger",
    "L": "boredom",
    "E": "disgust",
    "A": "fear",
    "F": "happiness",
    "T": "sadness",
    "N": "neutral",
}
PUBLISHED = {
    "whole corpus": {
        "anger": 127,
        "boredom": 81,
        "neutral": 79,
        "happiness": 71,
        "fear": 69,
        "sadness": 62,
        "disgust": 46,
    }
}
SPEAKERS = {
    "03": ("male", 31),
    "08": ("female", 34),
    "09": ("female", 21),
    "10": ("male", 32),
    "11": ("male", 26),
    "12": ("male", 30),
    "13": ("female", 32),
    "14": ("female", 35),
    "15": ("male", 25),
    "16": ("female", 31),
}
SENTENCES = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute abend k\u00f6nnte ich es ihm sagen.",
    "a05": "Das schwarze St\u00fcck Papier befindet sich da oben neben dem Holzst\u00fcck.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das f\u00fcr T\u00fcten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}
NAME = re.compile(rf"({'|'.join(SPEAKERS)})({'|'.join(SENTENCES)})([{''.join(LABELS)}])([a-z]+)")


def read(root: str, counts: str = "strict") -> Iterator[Utterance]:
    """Utterances of EmoDB in order of key; see the module for layouts and `shards.corpora` for `counts`."""
    folder = corpus_root(root, "emodb")
    perception = _perception(folder / "erkennung.txt")

    def build(stem: str, path: Path, match: re.Match, row: Mapping[str, str]) -> Utterance:
        speaker, sentence, code, take = match.groups()
        gender, age = SPEAKERS[speaker]
        recognised, natural = perception.get(stem, (None, None))
        return Utterance(
            key=make_key("emodb", stem),
            corpus="emodb",
            audio=str(path),
            recording=stem,
            speaker=speaker,
            language="de",
            gender=gender,
            age=age,
            text=SENTENCES[sentence],
            text_source="human",
            duration=number(row.get("duration_s")),
            label=LABELS[code],
            licence="research use, no formal licence",
            extra={
                "code": code,
                "sentence": sentence,
                "take": take,
                "recognised_pct": number(row.get("recognised_pct")) if row else recognised,
                "natural_pct": number(row.get("natural_pct")) if row else natural,
            },
        )

    return read_named(folder, "emodb", NAME, build, PUBLISHED, counts)


def _perception(path: Path) -> dict[str, tuple[float, float]]:
    """{stem: (recognised, natural)} of erkennung.txt: Latin-1, decimal commas, cells padded with hard spaces."""
    if not path.is_file():
        return {}
    table = {}
    for _, row in rows_of(path, "\t", "latin-1"):
        name, *shares = (row[column].strip("\u00a0 ") for column in ("Satz", "erkannt", "natuerlich"))
        if name.endswith(".wav") and all(shares):
            recognised, natural = (float(share.replace(",", ".")) for share in shares)
            table[name.removesuffix(".wav")] = (recognised, natural)
    return table
