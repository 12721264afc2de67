"""What every writer returns: a text of which some stretches, the answers, weigh more in training."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Piece:
    """A stretch of text. ``answer`` marks what a reader should be able to say by themselves."""

    text: str
    answer: bool = False


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
    return Document((Piece(text),))


def dialogue(turns: Iterable[tuple[str, str]]) -> Document:
    """Prompts and their answers in turn; an answer carries its own leading space, if any."""
    return Document(tuple(piece for prompt, answer in turns for piece in (Piece(prompt), Piece(answer, True))))
