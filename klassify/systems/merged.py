"""A fusion of the proposals of several systems; klassify.localisation.localise makes them."""

from __future__ import annotations

from klassify.errors import KlassifyError
from klassify.scores.score_file import ScoreFile
from klassify.systems.base import System

RULE = "proposals"


class Merged(System):
    """A fusion of the rule `proposals`, which has no clip scores."""

    @property
    def method(self) -> str:
        """How it joins them: `merge`, or the one in its parameters."""
        return str(self.parameters.get("method", "merge"))

    def score_command(self, split: str) -> str:
        """The command that makes the proposals of a split, for messages."""
        return f"klassify localise {self.folder} --split {split}"

    def derive(self, split: str, *, force: bool = False) -> ScoreFile:
        """Refused: `klassify localise` makes its proposals."""
        raise KlassifyError(
            f"{self.name} merges proposals and has no clip scores.",
            where=self.folder,
            fix=self.score_command(split),
        )
