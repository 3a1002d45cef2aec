"""Sentences of the generated corpus: a small slot grammar.

Both genuine and fake clips speak every choice of a slot, so the text does not reveal the label.
Choices of one slot have about the same length, so that a fake word fits into the real one's time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# five slots each; a slot is never the first or the last word, so both its edges are word events
TEMPLATES = """
    as we hear the {city|county} board will {support|reject}
    the {old|new} {bridge|market} before the {winter|summer} break

    i think our {older|younger} teachers {never|often}
    {read|write} such {bitter|gentle} letters in the {morning|evening} hours

    it seems a {small|large} group of {doctors|farmers} may
    {open|leave} the {northern|southern} road by {monday|friday} night

    in the end his {brother|sister} did {allow|forbid} the
    {black|white} {horses|cattle} to cross the {river|valley} again

    you see most {people|pupils} {agree|object} when the
    {early|later} train is {empty|crowded} on a {rainy|sunny} day

    at last the {mayor|judge} has {promised|refused} to
    {raise|lower} the {water|energy} bill for {six|ten} more weeks

    by the way my {cousin|partner} will {buy|sell} that
    {yellow|purple} {house|boat} after the {autumn|easter} holidays

    i know they {always|seldom} {trust|blame} the
    {local|foreign} paper when the {price|wage} goes {up|down} like this

    well that {good|bad} {story|rumour} about the
    {museum|station} was {true|false} for {many|several} years now they say

    so we {can|must} {start|finish} the {second|final} part
    with {fewer|twenty} people or {more|less} money in hand then

    they say the {nurse|pilot} felt {happy|angry} when the
    {storm|thunder} {began|ended} over the {island|village} coast

    on sunday both {teams|clubs} {won|lost} the
    {great|minor} game and {praised|cursed} the {captain|keeper} at once
""".strip().split("\n\n")
SHORT_TEMPLATES = (
    "the {city|county} board will {support|reject} the {old|new} plan",
    "his {brother|sister} may {open|leave} the {northern|southern} road",
    "my {cousin|partner} will {buy|sell} that {yellow|purple} house",
    "the {mayor|judge} has {promised|refused} the {water|energy} bill",
)


@dataclass(frozen=True)
class Sentence:
    """words: as spoken; choices: word number and possible words of each slot."""

    words: tuple[str, ...]
    choices: tuple[tuple[int, tuple[str, ...]], ...]

    @property
    def text(self) -> str:
        """All words, with spaces between."""
        return " ".join(self.words)

    def with_words(self, replaced: dict[int, str]) -> Sentence:
        """The sentence with other words at the given word numbers."""
        words = tuple(replaced.get(number, word) for number, word in enumerate(self.words))
        return Sentence(words, self.choices)

    def other_word(self, slot: int, rng: np.random.Generator) -> tuple[int, str]:
        """(word number, another word of that slot)."""
        number, words = self.choices[slot]
        others = [word for word in words if word != self.words[number]]
        return number, others[rng.integers(len(others))]


def draw_sentence(rng: np.random.Generator, short: bool = False) -> Sentence:
    """A random sentence; `short` ones take about 2.5 s instead of 4 s."""
    templates = SHORT_TEMPLATES if short else TEMPLATES
    words, choices = [], []
    for number, token in enumerate(templates[rng.integers(len(templates))].split()):
        if token.startswith("{"):
            options = tuple(token.strip("{}").split("|"))
            choices.append((number, options))
            token = options[rng.integers(len(options))]
        words.append(token)
    return Sentence(tuple(words), tuple(choices))
