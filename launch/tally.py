"""How fast a stage goes through the speech, and which machine did how much of it."""

import time
from collections import defaultdict

from launch.display import Display


class Tally:
    """Counts units of work (shards, side-shards) by machine."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.nodes: dict[str, list[float]] = defaultdict(lambda: [0, 0, 0.0])

    def add(self, node: str, utterances: int, seconds: float) -> None:
        """A unit of so many utterances and seconds of audio was done on a machine."""
        mine = self.nodes[node]
        mine[0] += 1
        mine[1] += utterances
        mine[2] += seconds

    def pace(self) -> str:
        """Utterances and hours of audio a second since the beginning."""
        elapsed = max(time.perf_counter() - self.began, 1e-9)
        _, utterances, seconds = (sum(column) for column in zip(*self.nodes.values()))
        return f"{utterances / elapsed:.1f} utt/s, {seconds / 3600 / elapsed:.3g} h of audio/s"

    def show(self, display: Display, title: str) -> None:
        """A row a machine, where several took part."""
        if len(self.nodes) > 1:
            rows = [
                (node, int(units), f"{int(utterances):,}", f"{seconds / 3600:.2f}")
                for node, (units, utterances, seconds) in sorted(self.nodes.items())
            ]
            display.table(f"{title}, by machine", ["machine", "units", "utterances", "hours of audio"], rows)
