"""Time to open an epoch of a plan and to seek in it: `python -m tests.bench.plan [rows]`.

Synthetic columns: 4 corpora, 900 rows a shard, durations of 1 to 15 seconds, 8 views with speed 0.9 to 1.1.
"""

import sys
import time

import numpy as np

from shards.law import combine, hash64, temperature
from shards.plan import Plan, PlanConfig
from shards.views import ViewPolicy, view_samples


def measure(rows: int) -> dict[str, float]:
    """Seconds for each stage at this many rows."""
    row = np.arange(rows)
    key_hash = hash64(1, row)
    samples = 16_000 + (hash64(2, row) % np.uint64(14 * 16_000)).astype(np.int64)
    shard = (row // 900).astype(np.int32)
    corpus = (shard % 4).astype(np.int32)
    label = (hash64(3, row) % np.uint64(7)).astype(np.int32)
    policy = ViewPolicy(count=8, seed=5, speed=(900, 1100))
    times = {}

    def clock(name, work):
        start = time.perf_counter()
        result = work()
        times[name] = time.perf_counter() - start
        return result

    config = PlanConfig(seed=7, slot_seconds=64, slots=8, views=0)
    plan = clock("build", lambda: Plan(key_hash, samples, shard, corpus, row, config))
    steps = clock("open an epoch, uniform, clean", lambda: plan.steps(0))
    clock("open 4 more epochs", lambda: plan.total_steps(5))
    clock("seek step 1 (cold pool)", lambda: plan.step(1))
    clock("next step (warm pool)", lambda: plan.step(2))
    clock("seek the middle (cold pool)", lambda: plan.step(steps // 2))
    clock("seek the last step of epoch 4 (cold pool)", lambda: plan.step(plan.total_steps(5) - 1))
    weights = clock("temperature weights", lambda: temperature(combine(corpus, label), 0.5))
    config = PlanConfig(seed=7, slot_seconds=64, slots=8, views=8)
    plan = Plan(
        key_hash,
        samples,
        shard,
        corpus,
        row,
        config,
        weights,
        lambda r, v: view_samples(policy, key_hash[r], v, samples[r]),
    )
    clock("open an epoch, temperature, 8 views", lambda: plan.steps(0))
    return times


def main() -> None:
    rows = int(float(sys.argv[1])) if len(sys.argv) > 1 else 10**6
    print(f"{rows} rows")
    for name, seconds in measure(rows).items():
        print(f"{seconds * 1000:10.1f} ms  {name}")


if __name__ == "__main__":
    main()
