"""Prosody against openSMILE: agreement per descriptor and speed, on real speech.

    python tests/bench/prosody.py [--files 60] [--json OUT]

For every descriptor: Pearson and Spearman correlation and median absolute error against openSMILE's eGeMAPSv02 low-level
descriptors, frame by frame. The first ten over all frames, the rest over frames that both call voiced (the rank correlation
over those where both give a value: jitter and shimmer are 0 where no period could be followed). Speed is CPU time of one thread, both side by side, audio already in memory. openSMILE is the judge here and nothing else: research licence.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import soundfile
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from ser.features import prosody  # noqa: E402

CORPORA = ("emodb", "nemo", "ravdess", "tess", "urdu")
F0 = prosody.NAMES.index("F0semitoneFrom27.5Hz")
BATCH_SECONDS = 120.0


def sample(root: Path, files: int) -> list[np.ndarray]:
    """Waveforms of evenly spaced files, `files` of each corpus that is there."""
    chosen = []
    for corpus in CORPORA:
        names = sorted((root / corpus / "audio").rglob("*.flac"))
        number = min(len(names), files)
        chosen += [names[i * len(names) // number] for i in range(number)]
    waves = []
    for name in chosen:
        wave, rate = soundfile.read(name, dtype="float32")
        assert rate == prosody.RATE and wave.ndim == 1, name
        waves.append(wave)
    return waves


def own(waves: list[np.ndarray]) -> list[np.ndarray]:
    """Our descriptors, batched by length: one (F, 25) array per file."""
    order = sorted(range(len(waves)), key=lambda i: len(waves[i]))
    out, batch = [None] * len(waves), []
    for place, i in enumerate(order):
        batch.append(i)
        full = sum(len(waves[j]) for j in batch) >= BATCH_SECONDS * prosody.RATE
        if full or place == len(order) - 1:
            lengths = torch.tensor([len(waves[j]) for j in batch])
            wave = torch.zeros(len(batch), int(lengths.max()))
            for row, j in enumerate(batch):
                wave[row, : lengths[row]] = torch.from_numpy(waves[j])
            frames, counts = prosody.extract(wave, lengths)
            for row, j in enumerate(batch):
                out[j] = frames[row, : counts[row]].numpy()
            batch = []
    return out


def reference(waves: list[np.ndarray]) -> list[np.ndarray]:
    """openSMILE's descriptors: one (F, 25) array per file."""
    import opensmile

    smile = opensmile.Smile(
        feature_set=opensmile.FeatureSet.eGeMAPSv02, feature_level=opensmile.FeatureLevel.LowLevelDescriptors
    )
    names = tuple(name.split("_sma3")[0] for name in smile.feature_names)
    assert names == prosody.NAMES, names
    return [smile.process_signal(wave, prosody.RATE).to_numpy() for wave in waves]


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks without tie correction."""
    out = np.empty(len(values))
    out[np.argsort(values, kind="stable")] = np.arange(len(values))
    return out


def compare(ours: list[np.ndarray], theirs: list[np.ndarray]) -> dict:
    """Agreement over aligned frames; openSMILE's extra last frame is left out."""
    assert all(len(b) - len(a) == 1 for a, b in zip(ours, theirs)), "frame counts"
    a = np.concatenate(ours).astype(np.float64)
    b = np.concatenate([t[: len(o)] for o, t in zip(ours, theirs)]).astype(np.float64)
    voiced_a, voiced_b = a[:, F0] > 0, b[:, F0] > 0
    both = voiced_a & voiced_b
    table = {}
    for column, name in enumerate(prosody.NAMES):
        x, y = (a[:, column], b[:, column]) if column < F0 else (a[both, column], b[both, column])
        given = (x != 0) & (y != 0) if column > F0 else slice(None)  # 0: could not be measured
        table[name] = {
            "r": float(np.corrcoef(x, y)[0, 1]),
            "rho": float(np.corrcoef(ranks(x[given]), ranks(y[given]))[0, 1]),
            "median_error": float(np.median(np.abs(x - y))),
            "deviation": float(y.std()),
        }
    semitones = np.abs(a[both, F0] - b[both, F0])
    return {
        "frames": len(a),
        "voicing_agreement": float((voiced_a == voiced_b).mean()),
        "voiced_share": float(voiced_b.mean()),
        "f0_within_0.1_semitone": float((semitones <= 0.1).mean()),
        "descriptors": table,
    }


def clock(work, repeats: int) -> tuple[list, float]:
    """Result and the least CPU seconds of several runs."""
    best = float("inf")
    for _ in range(repeats):
        began = time.process_time()
        result = work()
        best = min(best, time.process_time() - began)
    return result, best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=60, help="files of each corpus")
    parser.add_argument("--json", help="also write the figures here")
    options = parser.parse_args()
    root = Path(os.environ.get("SER_CORPORA", ROOT.parent / "shared" / "corpora"))
    if not root.is_dir():
        sys.exit(f"no corpora at {root}: set SER_CORPORA")
    torch.set_num_threads(1)
    waves = sample(root, options.files)
    seconds = sum(map(len, waves)) / prosody.RATE
    own(waves[:4])  # builds the constant matrices
    ours, own_time = clock(lambda: own(waves), 3)
    theirs, their_time = clock(lambda: reference(waves), 1)
    result = compare(ours, theirs)
    result["seconds"] = seconds
    result["times_real_time"] = {"own": seconds / own_time, "opensmile": seconds / their_time}
    print(
        f"{len(waves)} files, {seconds:.0f} s, {result['frames']} frames, {result['voiced_share']:.1%} voiced"
    )
    print(f"{'descriptor':<24}{'r':>8}{'rho':>8}{'median error':>14}{'deviation':>12}")
    for name, row in result["descriptors"].items():
        print(
            f"{name:<24}{row['r']:>8.4f}{row['rho']:>8.4f}{row['median_error']:>14.3g}{row['deviation']:>12.3g}"
        )
    print(f"voicing agreement {result['voicing_agreement']:.2%}, ", end="")
    print(f"F0 within 0.1 semitone on {result['f0_within_0.1_semitone']:.1%} of frames both call voiced")
    speed = result["times_real_time"]
    print(f"times real time, one thread: own {speed['own']:.0f}, openSMILE {speed['opensmile']:.0f}")
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
