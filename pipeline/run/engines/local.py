"""Local engine: planned work in this process, one node after the other."""

from collections.abc import Callable, Sequence

from pipeline.run.plan import Node


def run(nodes: Sequence[Node], execute: Callable[[Node], None]) -> None:
    """Execute the nodes in order; the first failure ends the run.

    The order of a plan is one in which every node comes after what it reads.
    """
    for node in nodes:
        execute(node)
