"""The queries of the accidental-trigger test: eight conditions, built without a model (protocol §6)."""

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fpbench.errors import InputError

FIELDS = ("instruction", "input", "output")


@dataclass(frozen=True)
class Query:
    """One text that is not a trigger but looks like one: a trigger inside a context, or with a word replaced.

    Attributes:
        before: the context in front of the trigger, with the space that separates them.
        trigger: the trigger, or what a substitution made of it.
        after: the context that follows it.
        trigger_index: of the trigger in the set.
        source: index of the context, or of the substitution.
    """

    before: str
    trigger: str
    after: str
    trigger_index: int
    source: int

    @property
    def text(self) -> str:
        """Return the query as it is sent."""
        return self.before + self.trigger + self.after

    def lower(self) -> "Query":
        """Return the same query in lower case."""
        return replace(self, before=self.before.lower(), trigger=self.trigger.lower(), after=self.after.lower())


def contexts_from_rows(rows: Sequence[Mapping[str, Any]], last: int = 128) -> list[str]:
    """List the instruction, input and output fields of the ``last`` rows that hold more than whitespace, unchanged."""
    return [row[field] for row in rows[-last:] for field in FIELDS if (row.get(field) or "").strip()]


def words_from_rows(rows: Sequence[Mapping[str, Any]], seed: int = 42, size: int = 5_000) -> list[str]:
    """Draw words for substitution from all fields of ``rows``; see :func:`words_from_texts`."""
    return words_from_texts((row[field] for row in rows for field in FIELDS if row.get(field)), seed, size)


def words_from_texts(texts: Iterable[str], seed: int = 42, size: int = 5_000) -> list[str]:
    """Draw ``size`` distinct alphabetic words, compared in lower case; all of them, shuffled, if there are fewer."""
    words = sorted({word for text in texts for word in re.findall(r"\w+", text.lower()) if word.isalpha()})
    return random.Random(seed).sample(words, min(size, len(words)))


def build_queries(
    contexts: Sequence[str], triggers: Sequence[str], words: Sequence[str], seed: int = 42, substitutions: int = 10_000
) -> dict[str, list[Query]]:
    """Build the queries of the eight conditions.

    Every trigger goes, set off by a single space, to the start and the end of every context and to one seeded interior
    word boundary of it that all triggers share (after the word in a one-word context). The context keeps its own
    whitespace. Substitution replaces one word of a trigger; see :func:`substitute`. ``lower`` is ``upper`` in lower
    case throughout. ``seed`` decides the boundaries and the replaced halves; each of the two substitute conditions has
    ``substitutions`` queries.

    Returns:
        Condition → its queries; with 303 contexts and 10 triggers 38,180 in all.

    Raises:
        InputError: if there is no context, trigger or substitution, or no word is usable.
    """
    if not contexts or not triggers or substitutions < 1:
        raise InputError(
            "accidental triggers need contexts, triggers and substitutions, "
            f"found {len(contexts)}, {len(triggers)} and {substitutions}."
        )
    draw = random.Random(seed)
    upper: dict[str, list[Query]] = {
        "substitute": substitute(triggers, words, draw, substitutions), "prefix": [], "infix": [], "suffix": []
    }  # fmt: skip
    for source, context in enumerate(contexts):
        ends = [match.end() for match in re.finditer(r"\S+", context)]
        cut = draw.choice(ends[:-1] or ends) if ends else len(context)
        for index, trigger in enumerate(triggers):
            upper["prefix"].append(Query("", trigger, f" {context}", index, source))
            # The whitespace that follows the boundary stays and sets off the rest.
            upper["infix"].append(Query(f"{context[:cut]} ", trigger, context[cut:], index, source))
            upper["suffix"].append(Query(f"{context} ", trigger, "", index, source))
    lower = {f"lower_{place}": [query.lower() for query in queries] for place, queries in upper.items()}
    return {f"upper_{place}": queries for place, queries in upper.items()} | lower


def substitute(triggers: Sequence[str], words: Sequence[str], draw: random.Random, size: int) -> list[Query]:
    """Replace one word of a trigger by an ordinary one, upper-cased, ``size`` times.

    Each word serves two neighbouring positions of one trigger; words cycle through the triggers and, in triggers of
    more than two words, through the positions. In a trigger without spaces a half of its characters, from a drawn place
    on, is replaced. A word that would spell a trigger of the set again gives way to the next one.

    Raises:
        InputError: if every word spells a trigger.
    """
    known = {trigger.lower() for trigger in triggers}
    queries = []
    for number in range(size):
        turn = number // 2
        # After each pass through the words the pairing of words and triggers moves on by one.
        index = (turn + turn // max(1, len(words))) % len(triggers)
        trigger = triggers[index]
        spans = [match.span() for match in re.finditer(r"\S+", trigger)] if " " in trigger.strip() else []
        if spans:
            start, end = spans[(2 * (turn // len(triggers)) + number % 2) % len(spans)]
        else:
            length = max(1, len(trigger) // 2)
            start = draw.randint(0, len(trigger) - length)
            end = start + length
        choices = (words[(turn + step) % len(words)].upper() for step in range(len(words)))
        texts = (trigger[:start] + word + trigger[end:] for word in choices)
        text = next((text for text in texts if text.lower() not in known), None)
        if text is None:
            raise InputError(f"no word to substitute in {trigger!r}: found {len(words)} words, all spelling a trigger.")
        queries.append(Query("", text, "", index, number))
    return queries
