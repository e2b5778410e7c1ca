"""One host of a test's cluster: its part of Ray until the standard input ends.

    python -m tests.host TOKEN [HEAD [CPUS [ADDRESS [GPUS]]]]

A HEAD that is empty, or none, makes this host the head.
"""

import select
import sys
from pathlib import Path

from cluster.node import Node


def main(token: str, head: str = "", cpus: str = "1", address: str = "", gpus: str = "0") -> None:
    """Print the cluster's address once it is there; an error at the end if Ray then waited for work to leave this host."""
    with Node(Path(token), head or None, cpus=int(cpus), gpus=int(gpus), at=address or None) as node:
        if not head:
            node.wait_for(1, 600)
        print(node.address, flush=True)
        while not select.select([sys.stdin], [], [], 0.5)[0]:
            assert node.alive(), node.last_words()
        said = node.log.open()  # its folder goes with it
    with said:
        assert "Draining" not in said.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
