"""One training without Ray: `torchrun --nproc-per-node 2 -m ser RECIPE MODEL FOLD SEED [key=value ...]`.

What the model needs (features, teachers' targets) must be there already: `ser run` makes it.
"""

import argparse
import os
import sys

from ser.job import Job
from ser.pin import refuse_withdrawn
from ser.recipe import load, refuse_remote
from ser.stopping import EXIT_CODE, Stopped
from ser.train import train
from shards.errors import UserError


def main() -> int:
    """Entry point of every rank."""
    parser = argparse.ArgumentParser(prog="torchrun -m ser", description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("model")
    parser.add_argument("fold")
    parser.add_argument("seed", type=int)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    try:
        recipe = load(arguments.recipe, arguments.overrides)
        refuse_remote(recipe, "a training by itself copies nothing to an object store")
        refuse_withdrawn(recipe)
        folder = train(recipe, Job(arguments.fold, arguments.model, arguments.seed))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return EXIT_CODE
    if os.environ.get("RANK", "0") == "0":
        print(folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
