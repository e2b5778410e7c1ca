"""`python -m shards.corpora.spokenaffect FOLDER [--utterances N] [--seed S] [--jobs J]`: make the corpus."""

import argparse
import sys

from shards.corpora.spokenaffect.corpus import generate
from shards.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description="Speak the synthetic corpus SpokenAffect.")
    parser.add_argument("folder")
    parser.add_argument("--utterances", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    show = sys.stderr.isatty()

    def progress(done: int, total: int) -> None:
        if show:
            print(f"\r{done}/{total}", end="", file=sys.stderr, flush=True)

    try:
        print(generate(args.folder, args.utterances, args.seed, args.jobs, progress))
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
