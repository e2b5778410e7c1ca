"""Benchmarks: `python -m tests.bench.NAME`. They print ratios against a ceiling and a peer, and never fail on time."""
