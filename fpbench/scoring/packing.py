"""Packing: token sequences as rows of prefix trees, in which shared beginnings stand once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

TokenIds = Sequence[int]


@dataclass
class TokenRow:
    """Several sequences as the tree of their beginnings, in depth-first order, T places.

    Place ``i`` attends to itself and its ancestors: those ``j < i`` with ``i < ends[j]``.

    Attributes:
        tokens: token id of every place, [T].
        depths: number of its ancestors, which is its position in its sequence, [T].
        ends: the place that follows its last descendant, [T].
        places: by number of a sequence, the places of its last tokens, as many as were asked for.
    """

    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    places: dict[int, list[int]] = field(default_factory=dict)

    @property
    def reads(self) -> list[int]:
        """Return the places whose predictions are asked for, each once."""
        return sorted({place for places in self.places.values() for place in places})


def rows_of(sequences: Mapping[int, TokenIds], wanted: Sequence[int], width: int, pair_cost: float) -> list[TokenRow]:
    """Arrange sequences into rows of at most ``width`` places; a longer sequence gets a row of its own.

    A row of T places costs T + ``pair_cost`` · T²: attention computes all pairs of them, also the masked ones. So a
    sequence joins the row of its neighbours as long as that costs less than to read the beginning that it shares with
    them once more in a row of its own.

    Args:
        sequences: by number, none empty.
        wanted: for every number how many of its last places are asked for, at least 1.
        width: of a row, in places.
        pair_cost: cost of attention to one place, in units of all else that is computed for a place.
    """
    parts: list[list[int]] = []
    used = 0
    before: TokenIds = ()
    for number in sorted(sequences, key=lambda number: tuple(sequences[number])):
        length = len(sequences[number])
        added = length - _shared(before, sequences[number])
        joined = added + pair_cost * ((used + added) ** 2 - used**2)
        if parts and used + added <= width and joined <= length + pair_cost * length**2:
            parts[-1].append(number)
            used += added
        else:
            parts.append([number])
            used = length
        before = sequences[number]
    return [_row(sequences, wanted, part) for part in parts]


def apart(sequences: Mapping[int, TokenIds], wanted: Sequence[int]) -> list[TokenRow]:
    """Give every sequence a row of its own, for models that cannot read trees."""
    return [_row(sequences, wanted, [number]) for number in sequences]


def side_by_side(rows: Sequence[TokenRow], width: int) -> list[TokenRow]:
    """Lay rows of trees one after another into rows of at most ``width`` places; a longer one keeps its own."""
    laid: list[TokenRow] = []
    for row in rows:
        if not laid or len(laid[-1].tokens) + len(row.tokens) > width:
            laid.append(TokenRow())
        into = laid[-1]
        start = len(into.tokens)
        into.tokens += row.tokens
        into.depths += row.depths
        into.ends += [start + end for end in row.ends]
        into.places |= {number: [start + place for place in places] for number, places in row.places.items()}
    return laid


def batches(rows: Sequence[TokenRow], tokens: int, reads: int) -> Iterator[list[TokenRow]]:
    """Group rows of like length, the longest first, into batches of at most ``tokens`` padded places.

    At most ``reads`` places are asked for in a batch. A row that is too long gets a batch of its own.
    """
    batch: list[TokenRow] = []
    asked = 0
    for row in sorted(rows, key=lambda row: -len(row.tokens)):
        own = len(row.reads)
        if batch and ((len(batch) + 1) * len(batch[0].tokens) > tokens or asked + own > reads):
            yield batch
            batch, asked = [], 0
        batch.append(row)
        asked += own
    if batch:
        yield batch


def _row(sequences: Mapping[int, TokenIds], wanted: Sequence[int], numbers: Sequence[int]) -> TokenRow:
    row = TokenRow()
    path: list[int] = []  # places from the root to the last token of the sequence before
    before: TokenIds = ()
    for number in numbers:
        sequence = sequences[number]
        common = _shared(before, sequence)
        for place in path[common:]:
            row.ends[place] = len(row.tokens)
        del path[common:]
        added = len(sequence) - common
        path.extend(range(len(row.tokens), len(row.tokens) + added))
        row.tokens.extend(sequence[common:])
        row.depths.extend(range(common, len(sequence)))
        row.ends.extend([0] * added)
        row.places[number] = path[-wanted[number] :]
        before = sequence
    for place in path:
        row.ends[place] = len(row.tokens)
    return row


def _shared(a: TokenIds, b: TokenIds) -> int:
    """Return the length of the common beginning."""
    low, high = 0, min(len(a), len(b))
    # Halving compares whole slices, which is faster than token by token.
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
