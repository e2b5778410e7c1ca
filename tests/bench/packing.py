"""Packing: our pack, serial and on Ray, against encoding alone (ceiling) and webdataset's own writer loop (peer)."""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import soundfile as sf
import webdataset

from cluster.pack import over
from cluster.session import Session
from shards.audio import encode_flac, load
from shards.pack import pack
from tests.bench.common import show, speechlike, timed


def main() -> None:
    """Print utterances a second."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--utterances", type=int, default=600)
    parser.add_argument("--seconds", type=float, default=3.0)
    arguments = parser.parse_args()
    n = arguments.utterances
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        utterances = speechlike(n, arguments.seconds, folder / "wav")

        def ceiling() -> None:
            for utterance in utterances:
                encode_flac(load(utterance))

        def peer() -> None:
            with webdataset.TarWriter(str(folder / "peer.tar")) as writer:
                for utterance in utterances:
                    samples, rate = sf.read(utterance.audio, dtype="int16")
                    with tempfile.NamedTemporaryFile(suffix=".flac") as file:
                        sf.write(file.name, samples, rate, subtype="PCM_16")
                        flac = Path(file.name).read_bytes()
                    text = json.dumps({"label": utterance.label}).encode()
                    writer.write({"__key__": utterance.key, "flac": flac, "json": text})

        def ours(run=None) -> None:
            shutil.rmtree(folder / "out", ignore_errors=True)
            options = {} if run is None else {"run": run}
            pack(utterances, str(folder / "out"), shard_seconds=n * arguments.seconds / 8, **options)

        rows = [("decode + FLAC encode alone (ceiling)", n / timed(ceiling)[0])]
        rows.append(("plain webdataset.TarWriter loop (peer)", n / timed(peer)[0]))
        rows.append(("ours, serial: tar, index, hashes, fsync", n / timed(ours)[0]))
        for workers in (1, 2):
            with Session(cpus=workers) as session:
                list(session.map(str, range(workers)))  # workers are up before the clock starts
                rows.append((f"ours, Ray, {workers} CPU", n / timed(lambda s=session: ours(over(s)))[0]))
        seconds = arguments.seconds
        show(f"packing {n} x {seconds} s (synthetic), 8 shards", "utt/s", rows, rows[1][0])


if __name__ == "__main__":
    main()
