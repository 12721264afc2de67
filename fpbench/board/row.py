"""A row of the board: what was measured of a method on a model and a set."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fpbench.adversaries.conditions import drift, is_attack
from fpbench.board.checks import Checked
from fpbench.board.groups import RowKey
from fpbench.board.removal import Removal
from fpbench.records.cell import ORIGIN, Cell

MODIFICATIONS = drift()

# Rates are fractions, intervals are [low, high] and cover 95 %.


class Figures:
    """Figures by name. Their JSON leaves out what is ``None`` and not named in ``KEPT``."""

    KEPT: ClassVar[tuple[str, ...]] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as ``leaderboard.json`` has them."""
        return {name: _json(value) for name, value in vars(self).items() if value is not None or name in self.KEPT}


def _json(value: Any) -> Any:
    match value:
        case Figures() | Checked() | Removal():
            return value.to_dict()
        case dict():
            return {key: _json(each) for key, each in value.items()}
        case list():
            return [_json(each) for each in value]
    return value


@dataclass(frozen=True)
class Detectability(Figures):
    """FSR under one condition.

    Attributes:
        fsr: exact where measured, sampled where reported; ``None`` for a failure.
        interval: over fingerprints.
        greedy: how many of the ``n`` fingerprints greedy decoding answers.
        primary: FSR of the primary target alone.
        retention: of the FSR at origin; ``None`` where that is too small to compare with.
        proof: that the modification happened, a seed each.
        base_proof: the same figures of the base.
        no_effect: why the modification counts as none on this checkpoint; it is then not averaged.
        lenient: ``fsr_lenient``; ``None`` where it was not measured, as in the first records.
        own_tokenizer: FSR under a handed-in checkpoint's tokenizer, where that is not its base's, by which all else is
            measured.
    """

    fsr: float | None
    reason: str | None = None
    interval: list[float] | None = None
    greedy: int | None = None
    n: int | None = None
    primary: float | None = None
    retention: float | None = None
    error_bound: float | None = None
    proof: list[dict[str, Any] | None] | None = None
    base_proof: list[dict[str, Any] | None] | None = None
    no_effect: str | None = None
    lenient: float | None = None
    own_tokenizer: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it with the FSR of a failure, and the retention of what was measured, even if ``None``."""
        kept = {"fsr": None} if self.interval is None else {"retention": None}
        return kept | super().to_dict()


@dataclass(frozen=True)
class Difference(Figures):
    """Utility less that of the base (protocol §5).

    Attributes:
        tasks: ``difference`` and ``p_value`` by task.
        accuracy: of the mean accuracy, paired by example; ``interval`` is its.
        token_perplexity: relative, paired by window; its interval is over ``windows`` of them.
    """

    tasks: dict[str, dict[str, float]] | None = None
    accuracy: float | None = None
    interval: list[float] | None = None
    token_perplexity: float | None = None
    token_perplexity_interval: list[float] | None = None
    windows: int | None = None


@dataclass(frozen=True)
class Utility(Figures):
    """Accuracy and perplexity; ``tasks`` are the record's, ``None`` where the figures are reported ones."""

    accuracy: float | None
    token_perplexity: dict[str, Any] | None
    word_perplexity: Any = None
    tasks: dict[str, dict[str, Any]] | None = None
    difference: Difference | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it with every figure of a measurement, even if ``None``."""
        kept = () if self.tasks is None else ("accuracy", "token_perplexity", "word_perplexity")
        return dict.fromkeys(kept) | super().to_dict()


@dataclass(frozen=True)
class Triggers(Figures):
    """Accidental triggers: rates of eight kinds of text, and how many of the set's triggers any of them activates."""

    conditions: dict[str, dict[str, Any]]
    average: float
    activated: int
    n: int
    interval: list[float]
    error_bound: float | None = None
    cut: int | None = None


@dataclass(frozen=True)
class Near(Figures):
    """Never-injected texts, of the set's make or of its words: mean rate, and how many greedy decoding answers."""

    rate: float
    greedy: int
    n: int
    interval: list[float]
    error_bound: float | None = None


@dataclass(frozen=True)
class Bands(Figures):
    """Perplexity of the set's triggers beside that of instructions."""

    counts: dict[str, int]
    trigger_mean: float
    mean: float
    auc: float
    deviation: float | None = None
    benign: int | None = None
    edges: list[float] | None = None
    histogram: list[int] | None = None


@dataclass(frozen=True)
class Claim(Figures):
    """Matches needed to claim ownership, ``None`` if all ``n`` are too few, and the power to get them (protocol §3)."""

    KEPT: ClassVar = ("threshold",)
    level: float
    threshold: int | None
    n: int
    p_value: float
    power: float
    largest_null: float


@dataclass(frozen=True)
class Cost(Figures):
    """Cost of the injection: seconds, bytes of memory, and the share of the weights that it changed.

    Attributes:
        seconds: of optimisation and write, without key statistics.
        statistics: seconds of the key statistics that these injections computed, for every later one on the model.
    """

    seconds: float
    peak_memory: float
    fraction: float
    relative_norm: float
    bytes: float
    statistics: float | None = None


@dataclass(frozen=True)
class Failure(Figures):
    """A cell that could not be measured."""

    condition: str
    metric: str
    seed: int
    reason: str


@dataclass(frozen=True)
class Row(Figures):
    """One model, fingerprint set and method, seeds pooled.

    Attributes:
        trust: ``re-run``, ``re-scored``, ``claimed`` or ``reported``.
        avg: mean FSR of the six modifications; ``None`` unless all are there.
        out: why the row has no rank; ``None`` if it has one, for a base, and where reported.
        checked: what re-running a part of a claimed row gave.
        unreliable: why the method is contested.
        alike: cosine of ΔW with that of a method whose update is nearly the same, by its name.
        unconfined: what the code of a submission could reach when it was run, as far as its records say.
        cells: paths of the records behind the row.
        data: where the data sets were read from, by name (:func:`fpbench.data.origin`); several where records differ.
        removal: what thieves leave and what it costs them; ``None`` where nobody attacked.
        others: figures of further metrics, by name.
        limited: items that a smoke run (``--limit``) cut its measurements to; such a row is never ranked.
        by_seed: where several seeds are pooled, the row of each alone, without rank.
    """

    model: str
    method: str
    fingerprints: str
    trust: str
    protocol: int | None
    conditions: dict[str, Detectability]
    avg: float | None
    avg_interval: list[float] | None = None
    utility: Utility | None = None
    triggers: Triggers | None = None
    near: Near | None = None
    recombined: Near | None = None
    bands: Bands | None = None
    claim: Claim | None = None
    cost: Cost | None = None
    provenance: list[dict[str, Any]] = field(default_factory=list)
    rank: int | None = None
    out: str | None = None
    failed: list[Failure] = field(default_factory=list)
    checked: Checked | None = None
    unreliable: str | None = None
    alike: dict[str, float] | None = None
    unconfined: list[str] | None = None
    cells: list[str] = field(default_factory=list)
    source: str | None = None
    removal: Removal | None = None
    others: dict[str, dict[str, Any]] = field(default_factory=dict)
    data: dict[str, list[str]] = field(default_factory=dict)
    limited: int | None = None
    by_seed: dict[int, "Row"] = field(default_factory=dict)

    @property
    def key(self) -> RowKey:
        """Model, set and method."""
        return self.model, self.fingerprints, self.method

    @property
    def seeds(self) -> list[int]:
        """Every seed that a record behind the row has; none where reported."""
        return sorted({cell.seed for path in self.cells if (cell := Cell.at(path))})

    def to_dict(self) -> dict[str, Any]:
        """Return every figure, even if ``None``, but those that reported, measured or unattacked rows never have."""
        optional = ("alike", "limited", "removal", "unconfined")
        absent = {"by_seed", "others"} | {name for name in optional if getattr(self, name) is None}
        absent |= {"avg_interval", "cells", "checked", "out"} if self.trust == "reported" else {"source"}
        return {name: _json(each) for name, each in vars(self).items() if name not in absent} | self.others


def further_conditions(rows: Sequence[Row]) -> list[str]:
    """Return the conditions that are none of the protocol's seven and no attack, such as ``finetune_math+nf4``."""
    found = {name for row in rows for name in row.conditions if not is_attack(name)}
    return sorted(found - {ORIGIN, *MODIFICATIONS})
