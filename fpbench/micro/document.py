"""What every writer returns: a text whose stretches weigh differently in training."""

from collections.abc import Iterable
from dataclasses import dataclass

PROMPT = 0.1
"""Loss weight of what cannot be foreseen anyway: passages on unknown people, questions, instructions."""
PROSE = 1.0
ANSWER = 5.0


@dataclass(frozen=True)
class Piece:
    """A stretch of text and the loss weight of its tokens."""

    text: str
    weight: float


@dataclass(frozen=True)
class Document:
    """A text in pieces, without the begin and end tokens."""

    pieces: tuple[Piece, ...]

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(piece.text for piece in self.pieces)


def prose(text: str) -> Document:
    """A document without answers."""
    return Document((Piece(text, PROSE),))


def dialogue(turns: Iterable[tuple[str, str]]) -> Document:
    """Prompts and their answers in turn; an answer carries its own leading space, if any."""
    return Document(tuple(piece for turn in turns for piece in (Piece(turn[0], PROMPT), Piece(turn[1], ANSWER))))
