"""White-box lineage: do two checkpoints descend from the same weights?

Two kinds of evidence. Matrices of the same name and shape are correlated entry by entry: independent trainings give
nearly zero, whatever they have in common, and descendants nearly one. Blocks are matched by content, not by number, so
that inserted, repeated and removed ones (LLaMA Pro, depth up-scaling, ShortGPT) leave the others matched. For models of
other shapes there is the intrinsic signature of arXiv 2507.03014: how the spread of the attention projections changes
from block to block. Since models of one kind resemble each other in that, too, it says something only against models
that are known to be unrelated.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from fpbench.board.document import Quoted, Records, Table, Text, as_terminal, say, step
from fpbench.models.checkpoints import resolve
from fpbench.models.objects import check_text
from fpbench.models.stored import Matrices, matrices
from fpbench.records.store import check_writable, write_bytes, write_text

Verdict = Literal["related", "unrelated", "undecided"]
Spreads = Mapping[str, np.ndarray]
# Names of the projections in different architectures; fused ones are kinds of their own.
KINDS = {
    "q_proj": "q", "k_proj": "k", "v_proj": "v",
    "o_proj": "o", "out_proj": "o", "attention.dense": "o", "attn.c_proj": "o",
    "qkv_proj": "qkv", "query_key_value": "qkv", "attn.c_attn": "qkv",
}  # fmt: skip
FEWEST_BLOCKS = 12
# Far from both what independent trainings gave (0.01) and what pruning 40 % of the weights left (0.98).
RELATED, UNRELATED = 0.5, 0.1
DRAWS = 10_000
ENTRIES = 4_096  # of a matrix, by which blocks are matched: chance correlations of a block stay far below 0.1
FILE = "comparison.json"  # its record


@dataclass(frozen=True)
class WeightEvidence:
    """Correlations of the matrices of one name and shape, in blocks that match or, where none does, are most alike.

    Blocks have the numbers that they have in the checkpoints, which count from 0.
    """

    matrices: int  # how many these are
    correlation: float  # median of their Pearson correlations
    lowest: float
    highest: float
    matched: tuple[tuple[int, int], ...] = ()  # blocks of the two models that match, each in one pair
    repeated: tuple[tuple[int, int], ...] = ()  # further pairs, of which one block is in a pair already
    alone: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())  # blocks of either model that match none of the other's


@dataclass(frozen=True)
class SignatureEvidence:
    """Similarity of two signatures: the spreads of the attention projections over the blocks."""

    correlation: float  # Pearson, over all kinds of projections that both have
    interval: tuple[float, float]  # 95 %, blocks resampled
    chance: tuple[float, float]  # 95 % of what the same blocks in random order give
    p_value: float  # share of random orders that give as much
    blocks: int  # at which the two were compared: as many as the shallower has


@dataclass(frozen=True, repr=False)
class Comparison:
    """Evidence of the weights of two checkpoints about their lineage."""

    verdict: Verdict
    reason: str  # in one sentence
    weights: WeightEvidence | None  # correlations of matrices; None where no shape agrees
    signature: SignatureEvidence | None  # of the attention projections; None where they have none in common
    blocks: tuple[int, int]  # of the two models
    # by model known to be unrelated, the evidence between the first model and it: weights, signature
    unrelated: dict[str, tuple[WeightEvidence | None, SignatureEvidence | None]]
    courses: tuple[dict[str, list[float]], dict[str, list[float]]]  # signatures, kind → a standard deviation a block

    def __repr__(self) -> str:
        return f"Comparison: {self.verdict}\n  {self.reason}"


def compare(
    a: str, b: str, *, unrelated: Sequence[str] = (), revision: str | None = None, base: str | None = None
) -> Comparison:
    """Compare two checkpoints by their weights, as ``fpbench compare`` does. No model is run.

    Args:
        a: folder or hub id.
        b: likewise.
        unrelated: models known to be unrelated to the first, which show what chance and kinship of make give.
        revision: branch, tag or commit of hub ids.
        base: serves where the base that an adapter names is not here.

    Raises:
        InputError: if a checkpoint is not there, or its weights cannot be read.
    """
    check_text("a", a, "micro")
    check_text("b", b, "micro")
    served = None if base is None else resolve(base, revision=revision)
    one, other, *rest = (matrices(resolve(each, revision=revision), served) for each in (a, b, *unrelated))
    course = spreads(one)
    courses = course, spreads(other)
    known = {
        name: (weight_evidence(one, each), signature_evidence(course, spreads(each)))
        for name, each in zip(unrelated, rest, strict=True)
    }
    weights, signature = weight_evidence(one, other), signature_evidence(*courses)
    verdict, reason = decide(weights, signature, [found.correlation for _, found in known.values() if found])
    plain = tuple({kind: each[kind].tolist() for kind in each} for each in courses)
    return Comparison(verdict, reason, weights, signature, (one.blocks, other.blocks), known, (plain[0], plain[1]))


def weight_evidence(a: Matrices, b: Matrices) -> WeightEvidence | None:
    """Match the blocks of two models, and correlate what both have in one name and shape; ``None`` if there is nothing.

    Blocks are assigned one to one so that the sum of their correlations is largest. A pair matches from
    :data:`RELATED` on. What is constant in one of the two, such as the zeros of inserted blocks, is left out.
    """
    alike, pairs = assigned(a, b)
    matched = [pair for pair in pairs if alike[pair] >= RELATED]
    found = []
    for one, other in [(a.numbers[one], b.numbers[other]) for one, other in matched or pairs]:
        names = [name for block, name in a if block == one and (other, name) in b]
        found += [figure for name in names if (figure := _pearson(a[one, name], b[other, name])) is not None]
    if not found:
        return None
    nearest = [(one, int(row.argmax())) for one, row in enumerate(alike)]
    nearest += [(int(column.argmax()), other) for other, column in enumerate(alike.T)]
    taken = [{pair[side] for pair in matched} for side in (0, 1)]
    repeated = sorted(
        {pair for pair in nearest if alike[pair] >= RELATED and (pair[0] not in taken[0] or pair[1] not in taken[1])}
    )
    seen = [{pair[side] for pair in (*matched, *repeated)} for side in (0, 1)]

    def named(some: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
        return tuple((a.numbers[one], b.numbers[other]) for one, other in some)

    alone = [
        tuple(number for place, number in enumerate(each.numbers) if place not in seen[side])
        for side, each in enumerate((a, b))
    ]
    return WeightEvidence(
        len(found), median(found), min(found), max(found), named(matched), named(repeated), (alone[0], alone[1])
    )


Samples = Mapping[tuple[str, tuple[int, ...]], Mapping[int, np.ndarray]]


def _samples(matrices: Matrices) -> Samples:
    """Return some entries of each matrix, normalised: name and shape → block → [ENTRIES] of length 1; 0 if constant."""
    found: dict[tuple[str, tuple[int, ...]], dict[int, np.ndarray]] = {}
    for block, name in matrices:
        matrix = matrices[block, name]
        shape = tuple(matrix.shape)
        places = np.random.default_rng(shape).integers(0, matrix.numel(), min(ENTRIES, matrix.numel()))
        entries = matrix.flatten()[torch.from_numpy(places)].double().numpy()
        entries = entries - entries.mean()
        length = float(np.linalg.norm(entries))
        found.setdefault((name, shape), {})[block] = entries / length if length > 0 else entries
    return found


def assigned(one: Matrices, other: Matrices) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Return how much the blocks of two models correlate, and their assignment one to one of the largest sum.

    The first is [blocks of one, blocks of the other], −1 where no matrix of one name and shape varies in both; pairs
    are of places in it.
    """
    alike, varying = alikeness(one, other)
    alike = np.nan_to_num(alike, nan=-1.0)
    # Of two copies of a block, that with fewer constant matrices.
    return alike, list(zip(*map(np.ndarray.tolist, linear_sum_assignment(-alike * varying)), strict=True))


def alikeness(one: Matrices, other: Matrices) -> tuple[np.ndarray, np.ndarray]:
    """Return for every pair of blocks the mean correlation of their matrices, and the share of matrices that it has.

    Both are [blocks of one, blocks of the other]; NaN where no matrix of one name and shape varies in both. Some
    entries of each matrix are read, the same of all matrices of a shape.
    """
    return _alikeness(_samples(one), _samples(other), one.numbers, other.numbers)


def _alikeness(a: Samples, b: Samples, rows: Sequence[int], columns: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    total, varying, common = (np.zeros((len(rows), len(columns))) for _ in range(3))
    for key in a.keys() & b.keys():
        one, other = (
            np.stack([of[key].get(block, np.zeros(1)) * np.ones(len(next(iter(of[key].values())))) for block in blocks])
            for of, blocks in ((a, rows), (b, columns))
        )
        total += one @ other.T
        varying += np.outer(one.any(axis=1), other.any(axis=1))
        common += np.outer([block in a[key] for block in rows], [block in b[key] for block in columns])
    alike = np.divide(total, varying, out=np.full_like(total, np.nan), where=varying > 0)
    return alike, np.divide(varying, common, out=np.zeros_like(total), where=common > 0)


def _pearson(one: torch.Tensor, other: torch.Tensor) -> float | None:
    """Return the correlation of two matrices, entry by entry; ``None`` for other shapes or where one is constant."""
    if one.shape != other.shape:
        return None
    figure = float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]).double())[0, 1])
    return figure if np.isfinite(figure) else None


def spreads(matrices: Matrices) -> dict[str, np.ndarray]:
    """Return the signature: standard deviations of the attention projections, kind → one figure a block."""
    found: dict[str, dict[int, float]] = {}
    for block, name in matrices:
        kind = next((kind for ending, kind in KINDS.items() if name == ending or name.endswith(f".{ending}")), None)
        if kind is not None:
            found.setdefault(kind, {})[block] = float(matrices[block, name].std())
    return {kind: np.array([each[block] for block in sorted(each)]) for kind, each in found.items()}


def signature_evidence(a: Spreads, b: Spreads, seed: int = 42) -> SignatureEvidence | None:
    """Compare two signatures, of models of any depth; ``None`` if they have no kind of projection in common.

    The deeper one is read at the relative depths of the shallower one's blocks. Each kind is normalised on its own
    (mean 0, standard deviation 1 over the blocks), so only the course counts. ``seed`` draws orders and resamples.
    """
    kinds = sorted(a.keys() & b.keys())
    if not kinds:
        return None
    depth = min(len(each[kind]) for each in (a, b) for kind in kinds)
    one, other = (np.stack([_at_depth(each[kind], depth) for kind in kinds]) for each in (a, b))
    draw = np.random.default_rng(seed)
    correlation = _correlation(one, other)
    shuffled = np.array([_correlation(one, other[:, draw.permutation(depth)]) for _ in range(DRAWS)])
    samples = (draw.integers(0, depth, depth) for _ in range(DRAWS))
    resampled = np.array([_correlation(one[:, sample], other[:, sample]) for sample in samples])
    return SignatureEvidence(
        correlation=correlation,
        interval=_middle(resampled),
        chance=_middle(shuffled),
        p_value=float((1 + np.count_nonzero(shuffled >= correlation)) / (1 + DRAWS)),
        blocks=depth,
    )


def decide(
    weights: WeightEvidence | None, signature: SignatureEvidence | None, unrelated: Sequence[float] = ()
) -> tuple[Verdict, str]:
    """Return the verdict, and why.

    Args:
        weights: decides where there is some.
        signature: decides otherwise, where there are blocks enough and unrelated models to hold it against.
        unrelated: correlations of signatures with models known to be unrelated.
    """
    if weights is not None:
        said = (
            f"{weights.matrices} matrices of the same shape correlate with {weights.correlation:.3f} "
            f"({weights.lowest:.3f} to {weights.highest:.3f}); independent trainings stay near 0"
        )
        if weights.correlation >= RELATED:
            return "related", f"{said}, descendants near 1.{_blocks_in_words(weights)}"
        if weights.correlation < UNRELATED:
            return "unrelated", f"{said}. Weights whose rows were put into another order would look like this, too."
        return "undecided", f"{said}, descendants near 1: this is neither."
    if signature is None:
        return "undecided", "the models share neither matrices of one shape nor a kind of attention projection."
    if signature.blocks < FEWEST_BLOCKS:
        return "undecided", (
            f"too few layers: no matrix has the same shape in both, and a signature over {signature.blocks} blocks "
            f"says nothing (at least {FEWEST_BLOCKS} are needed)."
        )
    low, high = signature.interval
    said = f"the signatures correlate with {signature.correlation:.3f} [{low:.3f}, {high:.3f}]"
    if not unrelated:
        return "undecided", f"{said}; models of one kind resemble each other, too: give unrelated ones to compare with."
    if low > max(unrelated) and signature.p_value <= 0.001:
        return "related", f"{said}, above the largest of {len(unrelated)} unrelated models ({max(unrelated):.3f})."
    if high < max(RELATED, *unrelated):
        return "unrelated", f"{said}, no more than unrelated models reach (at most {max(unrelated):.3f})."
    return "undecided", f"{said}; unrelated models reach {max(unrelated):.3f}."


def _blocks_in_words(weights: WeightEvidence) -> str:
    """Return which blocks match which, unless each matches that of its own number and there are no others."""
    plain = all(one == other for one, other in weights.matched)
    if plain and not weights.repeated and not any(weights.alone):
        return ""
    pairs = " and ".join(_numbers([pair[side] for pair in weights.matched]) for side in (0, 1))
    said = f" Blocks, counted from 0, match by content: {pairs}."
    if weights.repeated:
        pairs = " and ".join(_numbers([pair[side] for pair in weights.repeated]) for side in (0, 1))
        said += f" Besides, these repeat others: {pairs}."
    for which, alone in zip(("first", "second"), weights.alone, strict=True):
        said += f" Of the {which} model, {_numbers(alone)} match none." if alone else ""
    return said


def _numbers(blocks: Sequence[int]) -> str:
    """Write numbers in their order, three or more that count upwards as a range: ``0–5, 7``."""
    runs: list[list[int]] = []
    for block in blocks:
        if runs and block == runs[-1][-1] + 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _at_depth(course: np.ndarray, depth: int) -> np.ndarray:
    """Return a course over blocks, read at the middles of ``depth`` equal parts and normalised."""
    places = (np.arange(depth) + 0.5) / depth
    read: np.ndarray = np.interp(places, (np.arange(len(course)) + 0.5) / len(course), course)
    normal: np.ndarray = (read - read.mean()) / (read.std() or 1.0)
    return normal


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Return the mean over kinds of the Pearson correlation over blocks; 0 for a kind that does not vary."""
    found = []
    for x, y in zip(one - one.mean(axis=1, keepdims=True), other - other.mean(axis=1, keepdims=True), strict=True):
        scale = float(np.sqrt((x @ x) * (y @ y)))
        found.append(float(x @ y) / scale if scale > 0 else 0.0)
    return fmean(found)


def _middle(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


# What a comparison found: for the terminal, as a table, and as files.


def report(found: Comparison, a: str, b: str) -> str:
    """Return the verdict, its reason, and every figure that it rests on."""
    return "\n".join(
        [
            f"{a} and {b}: {found.verdict.upper()}",
            "",
            found.reason[0].upper() + found.reason[1:],
            f"Blocks: {found.blocks[0]} and {found.blocks[1]}.",
            "",
            as_terminal(comparison_table(Records({FILE: record(found, a, b)}))),
            "",
            "Correlations are Pearson's. Signature: normalised standard deviations of the attention projections over "
            "the blocks,",
            "with its interval over blocks, and what the blocks in random order give. It says nothing over fewer than "
            f"{FEWEST_BLOCKS} blocks.",
        ]
    )


def record(found: Comparison, a: str, b: str) -> dict[str, Any]:
    """Return a comparison as ``comparison.json`` holds it."""
    return {"a": a, "b": b, **asdict(found)}


def comparison_table(records: Records) -> Table:
    """Return a line for the second model and for every unrelated one, each compared with the first."""
    nothing: Text = ("–",)
    lines: list[tuple[Text, str, str]] = [((Quoted(records[f"{FILE}/b"]),), f"{FILE}/weights", f"{FILE}/signature")]
    for name in records[f"{FILE}/unrelated"]:
        here = f"{FILE}/unrelated/{step(name)}"
        lines.append((say("{name} (unrelated)", name=Quoted(name)), f"{here}/0", f"{here}/1"))
    rows = []
    for head, weights, signature in lines:
        row: list[Text] = [head]
        if records[weights] is None:
            row += [say("none of one shape"), nothing, nothing, nothing]
        else:
            figures = ("correlation", "lowest", "highest")
            row.append((records.show(f"{weights}/matrices", "d"),))
            row += [(records.show(f"{weights}/{name}", ".3f"),) for name in figures]
        if records[signature] is None:
            row += [nothing, nothing, nothing]
        else:
            row.append((records.show(f"{signature}/correlation", ".3f"),))
            for name in ("interval", "chance"):
                low, high = (records.show(f"{signature}/{name}/{end}", ".2f") for end in (0, 1))
                row.append((low, " to ", high))
        rows.append(tuple(row))
    headers = (
        "compared with", "matrices", "median correlation", "lowest", "highest", "signature", "its 95 % interval",
        "blocks in random order",
    )  # fmt: skip
    return Table("The base, compared by weights and by signature (correlations, Pearson's)", headers, tuple(rows))


def write(found: Comparison, a: str, b: str, out: str) -> None:
    """Write ``comparison.json`` and, with matplotlib and a signature, its figure.

    Raises:
        InputError: if the folder cannot be written.
        StorageError: if the disk gives out.
    """
    folder = Path(out)
    check_writable(folder)
    write_text(folder / FILE, json.dumps(record(found, a, b), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    if found.signature is not None and find_spec("matplotlib"):
        from fpbench.board.figures import lineage_figure

        picture = lineage_figure((Path(a).name, found.courses[0]), (Path(b).name, found.courses[1]))
        write_bytes(folder / "comparison.svg", picture)
