"""Trees of corpora in their real layout, with tiny synthetic audio."""

import io

import numpy as np
import pytest
import soundfile


@pytest.fixture(scope="session")
def wav() -> bytes:
    """A tenth of a second of noise as a WAV file."""
    file = io.BytesIO()
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, 1600)
    soundfile.write(file, noise, 16000, format="WAV", subtype="PCM_16")
    return file.getvalue()


@pytest.fixture
def plant(tmp_path, wav):
    """plant(names): writes each name below tmp_path, WAV for audio suffixes, and gives tmp_path back."""

    def make(names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(wav)
        return tmp_path

    return make
