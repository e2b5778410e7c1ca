"""Where a session would stand when one process does all the work itself."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any


class Here:
    """`cluster.session.Session.map` without Ray: one item after the other, in order."""

    node = "here"

    def map(
        self, function: Callable[[Any], Any], items: Iterable[Any], **resources: Any
    ) -> Iterator[tuple[int, Any]]:
        """Yields (index of the item, function(item)); what a task would take of a cluster means nothing here."""
        return ((index, function(item)) for index, item in enumerate(items))
