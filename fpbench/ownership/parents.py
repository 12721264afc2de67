"""Which of several candidates can a checkpoint descend from? The set that its weights do not exclude.

Where a suspect s keeps what distinguishes one candidate from another, it lies nearer to the one by just that. With the
nearest candidate c*, the excess of a candidate c is e(c) = (‖s − c‖² − ‖s − c*‖²) / ‖c − c*‖²: 0 for c* itself, and 1
for what the suspect has nothing of. Candidates of small excess stay in the set. How small is read off known descents
(split conformal prediction): the set holds the parent with at least the stated coverage, for suspects that were made as
those were.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tabulate import tabulate

from fpbench.errors import InputError
from fpbench.models.checkpoints import resolve
from fpbench.models.stored import Matrices, matrices
from fpbench.ownership.lineage import RELATED, UNRELATED, assigned
from fpbench.records.store import check_writable, write_text
from fpbench.text import visible

State = Literal["possible", "excluded", "unrelated", "not comparable"]

FILE = "parents.json"
# The excess of the true parent in known descents, ascending (tests/slow/lineage.md says which); 0 for all others.
DESCENTS = 68
LARGEST_EXCESSES = (0.0832, 0.2279, 0.2427, 0.3132)


@dataclass(frozen=True)
class Candidate:
    """A candidate and what the weights say about it.

    Attributes:
        name: as it was given.
        state: ``"possible"`` if it is in the set; ``"not comparable"`` where no matrix has the same shape.
        correlation: mean over matched blocks, of −1 to 1; ``None`` where nothing is comparable.
        excess: e(c), 0 for the nearest candidate; ``None`` for those that are not related.
    """

    name: str
    state: State
    correlation: float | None = None
    excess: float | None = None


@dataclass(frozen=True)
class Parents:
    """The candidates, and the coverage at which the possible ones hold the parent.

    Attributes:
        coverage: least probability that the parent is among the possible ones, if it is a candidate at all.
        matrices: how many matrices of the suspect were compared with every related candidate.
    """

    suspect: str
    candidates: tuple[Candidate, ...]
    coverage: float
    matrices: int

    @property
    def possible(self) -> tuple[str, ...]:
        """The set of candidates that are not excluded, nearest first."""
        kept = [each for each in self.candidates if each.state == "possible"]
        return tuple(each.name for each in sorted(kept, key=lambda each: each.excess or 0.0))


def parents(
    suspect: str,
    candidates: Sequence[str],
    *,
    coverage: float = 0.95,
    revision: str | None = None,
    base: str | None = None,
) -> Parents:
    """Return which candidates the weights of a suspect do not exclude as its parent. No model is run.

    A candidate that was itself made from the suspect looks like a parent: the weights do not tell who was first. A
    candidate of other shapes is not comparable and stays undecided.

    Args:
        suspect: folder, hub id or name.
        candidates: likewise, each once.
        coverage: least probability that the set holds the parent where that is among the candidates.
        revision: branch, tag or commit of hub ids.
        base: of adapters that name one which is not here.

    Raises:
        InputError: for a coverage that the known descents do not support, a candidate given twice, or a checkpoint
            that is not there or cannot be read.
    """
    if isinstance(candidates, str) or len(set(candidates)) < len(candidates) or not candidates:
        raise InputError(f"candidates: expected a list of different checkpoints, found {candidates!r}.")
    largest = largest_excess(coverage)
    served = None if base is None else resolve(base, revision=revision)
    own, *others = (matrices(resolve(each, revision=revision), served) for each in (suspect, *candidates))
    correlations, excesses, compared = evidence(own, others)

    def judged(name: str, correlation: float | None, excess: float | None) -> Candidate:
        if correlation is None:
            return Candidate(name, "not comparable")
        if correlation < UNRELATED:
            return Candidate(name, "unrelated", correlation)
        # Between unrelated and related nothing is excluded.
        state: State = "possible" if excess is None or excess <= largest else "excluded"
        return Candidate(name, state, correlation, excess)

    found = tuple(map(judged, candidates, correlations, excesses))
    return Parents(suspect, found, coverage, compared)


def largest_excess(coverage: float) -> float:
    """Return the excess up to which a candidate stays in the set: the ⌈(n + 1)·coverage⌉-th of n known descents.

    Raises:
        InputError: for a coverage that n descents do not support.
    """
    rank = int(np.ceil((DESCENTS + 1) * coverage - 1e-9))
    if not 0 < coverage < 1 or rank > DESCENTS:
        raise InputError(
            f"coverage: expected a number between 0 and {DESCENTS / (DESCENTS + 1):.3f}, which is what {DESCENTS} "
            f"known descents support, found {coverage:g}."
        )
    above = DESCENTS - rank  # how many descents lie above it
    return LARGEST_EXCESSES[-1 - above] if above < len(LARGEST_EXCESSES) else 0.0


def evidence(own: Matrices, others: Sequence[Matrices]) -> tuple[list[float | None], list[float | None], int]:
    """Return each candidate's correlation and excess, and in how many matrices all related ones were compared."""
    matches = [_matches(own, other) for other in others]
    correlations = [None if found is None else found[0] for found in matches]
    related = [number for number, found in enumerate(matches) if found is not None and found[0] >= RELATED]
    excesses: list[float | None] = [None] * len(others)
    if not related:
        return correlations, excesses, 0
    gram, compared = np.zeros((len(related), len(related))), 0
    for block, name in own:
        places = [(others[number], (matches[number][1].get(block, -1), name)) for number in related]  # type: ignore[index]
        if not all(key in other for other, key in places):
            continue
        one = own[block, name]
        rows = [other[key] for other, key in places]
        if any(row.shape != one.shape for row in rows):
            continue
        differences = torch.stack([(row - one).flatten() for row in rows])  # (candidates, entries)
        gram += (differences.double() @ differences.double().T).numpy()
        compared += 1
    distances = gram.diagonal()
    nearest = int(distances.argmin())
    apart = distances + distances[nearest] - 2 * gram[nearest]
    for place, number in enumerate(related):
        more = float(distances[place] - distances[nearest])
        excesses[number] = more / float(apart[place]) if more > 0 else 0.0
    return correlations, excesses, compared


def _matches(own: Matrices, other: Matrices) -> tuple[float, dict[int, int]] | None:
    """Return the mean correlation of matched blocks, and which block of the other each own one matches."""
    alike, pairs = assigned(own, other)
    if (alike == -1.0).all():
        return None
    kept = [pair for pair in pairs if alike[pair] >= RELATED]
    figure = float(np.mean([alike[pair] for pair in kept or pairs]))
    return figure, {own.numbers[one]: other.numbers[place] for one, place in kept}


def report(found: Parents) -> str:
    """Return the set, and what is known of every candidate, nearest first."""
    possible = ", ".join(map(visible, found.possible)) or "none of the candidates"
    order = sorted(found.candidates, key=lambda each: (each.excess is None, each.excess, -(each.correlation or -2)))
    rows = []
    for each in order:
        figures = ("–" if figure is None else f"{figure:.3f}" for figure in (each.correlation, each.excess))
        rows.append([visible(each.name), each.state, *figures])
    table = tabulate(rows, ("candidate", "", "correlation", "excess"), tablefmt="github", disable_numparse=True)
    return "\n".join(
        [
            f"{visible(found.suspect)} can descend from: {possible} (coverage {100 * found.coverage:g} %)",
            "",
            str(table),
            "",
            f"Excess, over {found.matrices} matrices: 0 the nearest candidate, 1 what the suspect has nothing of.",
            "The set holds the parent at the stated coverage where it is among the candidates, for suspects made as",
            "the known descents were (docs/checkpoints.md). Weights do not tell who was first: a candidate made from",
            "the suspect looks like its parent.",
        ]
    )


def write(found: Parents, out: str) -> None:
    """Write ``parents.json``.

    Raises:
        InputError: if the folder cannot be written.
        StorageError: if the disk gives out.
    """
    check_writable(Path(out))
    told = asdict(found) | {"possible": found.possible}
    write_text(Path(out) / FILE, json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
