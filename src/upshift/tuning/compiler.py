"""What torch.compile did behind our back: graphs made, and broken."""

from __future__ import annotations

import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class CompilerCount:
    """Graphs that torch.compile made in this process.

    Attributes:
        num_graphs: Made in all.
        num_graph_breaks: Places at which it had to go back to Python.
    """

    num_graphs: int = 0
    num_graph_breaks: int = 0

    def since(self, before: CompilerCount) -> CompilerCount:
        """What was added since `before`."""
        return CompilerCount(
            self.num_graphs - before.num_graphs,
            self.num_graph_breaks - before.num_graph_breaks,
        )

    def to_json(self) -> dict[str, int]:
        return {"num_graphs": self.num_graphs, "num_graph_breaks": self.num_graph_breaks}


class CompilerCounts:
    """Reads Dynamo's own counters, without importing it where nothing was compiled yet."""

    def read(self) -> CompilerCount:
        """The counts so far."""
        dynamo = sys.modules.get("torch._dynamo.utils")
        if dynamo is None:
            return CompilerCount()
        counters = dynamo.counters
        return CompilerCount(
            num_graphs=counters["stats"]["unique_graphs"],
            num_graph_breaks=sum(counters["graph_break"].values()),
        )
