"""The least that has to be computed for many sequences, counted the plain way."""

from collections.abc import Sequence


def distinct_beginnings(sequences: Sequence[Sequence[int]]) -> int:
    """Tokens in the tree of all sequences."""
    total, before = 0, []  # type: int, list[int]
    for sequence in sorted(map(list, sequences)):
        pairs = enumerate(zip(before, sequence, strict=False))
        total += len(sequence) - next((at for at, (a, b) in pairs if a != b), min(len(before), len(sequence)))
        before = sequence
    return total
