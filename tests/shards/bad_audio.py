"""Files that no reader should take for speech."""

from pathlib import Path

import numpy as np
import soundfile


def bad_files(folder: Path) -> dict[str, str]:
    """Broken file -> word of the reason that must be given."""
    folder.mkdir(parents=True)
    tone = 0.1 * np.sin(np.arange(8_000) / 9).astype(np.float32)
    (folder / "text.wav").write_text("this is not audio")
    soundfile.write(folder / "empty.wav", tone[:0], 16_000)
    (folder / "zero.wav").write_bytes(b"")
    nan = tone.copy()
    nan[77] = np.nan
    soundfile.write(folder / "nan.wav", nan, 16_000, subtype="FLOAT")
    soundfile.write(folder / "hour.wav", np.zeros(3_600_000, np.int16), 1_000, subtype="PCM_U8")
    return {
        "text": "unreadable",
        "empty": "empty",
        "zero": "unreadable",
        "nan": "non-finite",
        "hour": "too long",
        "missing": "unreadable",
    }
