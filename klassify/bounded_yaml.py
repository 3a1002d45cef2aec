"""YAML of a few lines cannot stand for a value without end: what aliases may repeat is bounded."""

from __future__ import annotations

from typing import Any

import yaml

MOST_REPEATED = 1 << 20  # characters and values that all aliases of a file stand for


class BoundedLoader(yaml.SafeLoader):
    """SafeLoader that refuses a value that holds itself, and aliases that repeat too much."""

    def __init__(self, stream: Any):
        super().__init__(stream)
        self.size, self.repeated = 0, 0
        self.size_of: dict[int, int] = {}  # of the values that are read to their end, by their id

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        """The next value, its size added to what was read."""
        alias, mark, before = (
            self.check_event(yaml.AliasEvent),
            self.peek_event().start_mark,
            self.size,
        )
        node = super().compose_node(parent, index)
        if not alias:
            self.size += 1 + len(node.value) * isinstance(node, yaml.ScalarNode)
            self.size_of[id(node)] = self.size - before
            return node
        if id(node) not in self.size_of:
            raise yaml.MarkedYAMLError(problem="this value holds itself", problem_mark=mark)
        self.size += self.size_of[id(node)]
        self.repeated += self.size_of[id(node)]
        if self.repeated > MOST_REPEATED:
            raise yaml.MarkedYAMLError(problem="its aliases repeat too much", problem_mark=mark)
        return node
