"""A modification: a change to a released model, with the proof that it happened (protocol §4).

Nothing here loads torch at the top: plans and boards ask this file and the classes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeGuard

from fpbench.checks import Settings, read_settings
from fpbench.errors import CellError, InputError
from fpbench.models.meter import Progress, no_progress

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fpbench.fingerprints import Fingerprint
    from fpbench.models.costs import Counter, Phase, Shape, Work


@dataclass(frozen=True)
class Dose:
    """How strong a modification or an adversary is, on the scale that its class declares.

    Attributes:
        unit: of the number, in words, such as ``"share of the weights"``.
        default: where a condition names none; ``None`` where what is named without a dose is not on this scale.
        list: the doses of the ``removal`` preset, ascending in strength.
        least: smallest that is accepted.
        most: largest that is accepted.
        weaker_is_larger: whether a larger number does less.
        whole: whether it is a whole number, as it is, too, where the default is one.
    """

    unit: str
    default: float | None
    list: tuple[float, ...]
    least: float = 0
    most: float = math.inf
    weaker_is_larger: bool = False
    whole: bool = False

    def read(self, part: str, text: str) -> float:
        """Return the number of a condition's part.

        Raises:
            InputError: naming the part, for what is no such number or out of range.
        """
        whole = self.whole or isinstance(self.default, int)
        try:
            amount: float = int(text) if whole else float(text)
        except ValueError:
            amount = math.nan
        if not self.least <= amount <= self.most or math.isinf(amount):  # NaN fails this, too
            kind = "a whole number" if whole else "a number"
            most = "" if math.isinf(self.most) else f" to {self.most:g}"
            raise InputError(
                f"condition {part!r}: the dose is {self.unit}, {kind} from {self.least:g}{most}, found {text!r}."
            )
        return amount


def amount_of(name: str, dose: Dose | None, amount: float | None) -> float:
    """Return the dose to apply, by default the class's own; NaN where there is none.

    Raises:
        InputError: for a dose out of range, or where none is taken.
    """
    if dose is None:
        if amount is not None:
            raise InputError(f"{name!r} takes no dose, found {amount:g}.")
        return math.nan
    if amount is not None:
        return dose.read(name, f"{amount:g}")
    return math.nan if dose.default is None else dose.default


LEAST_CHANGE = 0.1  # of the base's relative change, below which a modification had no effect (protocol §4)


class ModificationConfig(Settings):
    """Settings of a modification; unknown keys are refused."""


@dataclass(frozen=True)
class ModificationContext:
    """Seed and data of a modification, besides the model and its tokenizer."""

    seed: int = 42  # seeds everything random
    # of each fine-tuning set that Modification.data names, with "instruction", "input" and "output"
    rows: dict[str, Sequence[dict[str, str]]] = field(default_factory=dict)
    calibration: Sequence[str] = ()  # plain documents, in order, for activation statistics
    progress: Progress = no_progress  # wraps an iterable in a labelled progress bar
    # the weights of the unfingerprinted model by parameter name; empty where they are not known
    base: Mapping[str, "Tensor"] = field(default_factory=dict)
    # gives the weights, by parameter name, of models that others fingerprinted with other sets on the same base
    siblings: Callable[[], Sequence[Mapping[str, "Tensor"]]] = tuple
    before: tuple[str, ...] = ()  # the parts of the condition that were applied already
    # the doses that are asked of this very checkpoint, ascending, by the parts before and the name
    doses: Mapping[tuple[str, ...], Sequence[float]] = field(default_factory=dict)
    # what was found out about this very checkpoint, by keys that begin like those of ``doses``: several doses pay once
    kept: dict[tuple[Any, ...], Any] = field(default_factory=dict, compare=False, repr=False)
    # What only those are given whose ``needs`` name it; triggers are prompts, as verification sends them.
    fingerprints: Sequence["Fingerprint"] = ()  # "fingerprints": the set, which its owner knows
    leaked: Sequence["Fingerprint"] = ()  # "leaked": the pairs of it that a thief got hold of
    # "method": injects so many pairs of the thief's own into a model, in place, by the method that made it; returns
    # what the proof says of them
    inject: Callable[["nn.Module", int], dict[str, Any]] | None = None
    # "fingerprints": exact FSR of a model on the set
    fsr: Callable[["nn.Module"], float] | None = None


@dataclass(frozen=True)
class Modified:
    """A modified model and the proof that something was done to it."""

    model: "nn.Module"  # the model to use from now on
    proof: dict[str, Any]  # figures such as sparsity, bits_per_weight, loss_curve, tokens_seen, relative_change


class Modification(ABC):
    """Changes a model the way an adversary, or an ordinary user, might.

    Subclasses implement :meth:`apply` and overwrite what does not fit below: nothing else of the harness knows them by
    name. Their modules load torch inside functions alone, since plans and boards ask the classes without it.

    Attributes:
        name: given by the registry.
        version: of what it does; part of every result's identity.
        data: what it is given in the context, and what decides its outcome: of the profile's data sources ``alpaca``
            and ``math`` (rows) and ``calibration`` (texts).
        against_base: whether it compares the model with its unfingerprinted base, and so means nothing on the base.
        leaves: what it leaves, in words, where nothing can be applied after it; empty where anything can.
        needs: what of the context it cannot do without, besides: ``"siblings"``; or what only a fingerprinted model
            has, so that it means nothing on the base: ``"fingerprints"`` (the set, for its owner), ``"leaked"`` (pairs
            of it) or ``"method"`` (that made it).
        trains: whether it trains, so that the order of summation shows in results.
        on_the_way: whether one run passes all doses of a checkpoint and costs what the largest costs.
        level: threat level of who does it, ``"L0"`` to ``"L4"`` (docs/adversaries.md): what they know and have.
        pays: what they pay with, in multiples: ``inference`` (forward passes a token), ``data`` (training tokens),
            ``parameters`` (further resident models).
        dose: its scale; ``None`` for what has one strength only.
        control: name of the control that stands beside it; empty for none.
        drift: whether it is one of the six whose mean is AVG (protocol §4); counts for the package's own alone.
        slowdown: how much longer a forward pass of the modified model takes.
        family: heading of its kind in LaTeX tables.
        heading: its own heading in LaTeX tables.
        figures: how each figure of the proof that the board shows is written, in order.
    """

    name: str
    version: ClassVar[str] = "1"
    data: tuple[str, ...] = ()
    against_base: ClassVar[bool] = False
    leaves: ClassVar[str] = ""
    needs: Sequence[str] = ()
    trains: ClassVar[bool] = False
    on_the_way: ClassVar[bool] = False
    level: ClassVar[str] = "L0"
    pays: ClassVar[Mapping[str, float]] = {}
    dose: ClassVar[Dose | None] = None
    control: ClassVar[str] = ""
    drift: ClassVar[bool] = False
    slowdown: ClassVar[float] = 1.0
    family: ClassVar[str] = ""
    heading: ClassVar[str] = ""
    figures: ClassVar[Mapping[str, Callable[[Any], str]]] = {"relative_change": lambda value: f"‖ΔW‖/‖W‖ {value:.3f}"}

    class Config(ModificationConfig):
        """No settings."""

    def __init__(self, amount: float | None = None, **config: Any) -> None:
        """Validate ``config`` against :class:`Config`; ``amount`` is the dose, by default the class's own.

        Raises:
            InputError: naming the first unknown or malformed setting.
        """
        self.config: Any = read_settings(self.Config, f"condition {self.name!r}", config)
        self.amount = amount_of(self.name, self.dose, amount)

    @property
    def identity(self) -> dict[str, Any]:
        """Version, dose and settings as given: they decide the outcome, with model, data and seed."""
        dose = {} if math.isnan(self.amount) else {"dose": self.amount}
        return {"version": self.version, "settings": self.config.model_dump(mode="json")} | dose

    @property
    def parts(self) -> Sequence["Modification"]:
        """The modifications that this one applies, in order: itself, if it is no composition."""
        return (self,)

    @property
    def searches(self) -> bool:
        """True if its learning rate is yet to be found by a search on the base."""
        return False

    @property
    def needs_base(self) -> bool:
        """True if a part compares with the unfingerprinted base, or searches on it."""
        return any(part.against_base or part.searches for part in self.parts)

    def leaks(self, count: int) -> Sequence[Sequence[int]]:
        """Return which of ``count`` fingerprints leak together, each time; by default each alone."""
        return in_turn(count, count)

    @abstractmethod
    def apply(self, model: "nn.Module", tokenizer: Any, context: ModificationContext) -> Modified:
        """Modify ``model``, in place where that is natural; do not go on using the one handed in.

        Raises:
            InputError: if data it needs is not in ``context``.
            CellError: if it had no effect, or produced non-finite weights.
        """

    @classmethod
    def implausible(cls, proof: Mapping[str, Any], amount: float | None = None) -> str | None:
        """Return what cannot be in the proof of a record at a dose, in words; ``None`` where everything can."""
        return None

    @classmethod
    def without_effect(cls, proof: Mapping[str, Any], base: Mapping[str, Any]) -> str | None:
        """Return in words how much less it did to a checkpoint than to its base; ``None`` where it did its work.

        Weights can be rescaled so that they compute the same and a step of training means nothing to them.
        """
        own, other = (each.get("relative_change") for each in (proof, base))
        # Written so that what is no number is no effect either.
        if is_number(other) and not (is_number(own) and own >= LEAST_CHANGE * other):
            return f"‖ΔW‖/‖W‖ {own:.2g} against {other:.2g} of the base" if is_number(own) else "no ‖ΔW‖/‖W‖"
        return None

    # What the estimate before a run asks for, with defaults that serve whatever looks at every weight a few times.

    def work(self, counter: "Counter", rows: Mapping[str, Sequence[dict[str, str]]]) -> "Work":
        """Count what it computes on a model without weights and ``rows`` as :class:`ModificationContext` has them."""
        from fpbench.models.costs import Work

        return Work(handled=8 * counter.parameters)

    def memory(self, shape: "Shape") -> "Phase":
        """Count the bytes that it takes besides the model: by default some copies of the largest weight in float64."""
        from fpbench.models.costs import Phase, Room

        return Phase(self.name, Room(4 * 8 * max(parameter.numel() for parameter in shape.model.parameters())))


def in_turn(count: int, times: int, size: int = 1) -> Sequence[Sequence[int]]:
    """Return so many groups of ``size`` of the numbers below ``count``, evenly spread.

    What is left of every fingerprint is known of those groups that it is not in: two at least are needed.

    Raises:
        InputError: if there are too few fingerprints.
    """
    times = min(times, count // size)
    if times < 2:
        raise InputError(f"{size} of {count} fingerprints cannot leak in turn: twice as many are needed.")
    return [[turn * count // times + number for number in range(size)] for turn in range(times)]


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether a figure of a proof, which may come from a stranger's record, is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class Composition(Modification):
    """Several modifications in order, each applied to what the one before left; memory is asked of each part.

    One of no parts leaves the model as it is: that of a condition without a weights part.
    """

    def __init__(self, modifications: Mapping[str, Modification]) -> None:
        """Compose modifications, in this order, each by its part of the condition."""
        self.name = "+".join(modifications)
        super().__init__()
        self._parts = dict(modifications)
        self.data = tuple(dict.fromkeys(name for part in self.parts for name in part.data))
        self.needs = tuple(dict.fromkeys(name for part in self.parts for name in part.needs))

    @property
    def parts(self) -> Sequence[Modification]:
        """Those it was composed of."""
        return tuple(self._parts.values())

    @property
    def identity(self) -> dict[str, Any]:
        """The identity of every part."""
        return {name: part.identity for name, part in self._parts.items()}

    def apply(self, model: "nn.Module", tokenizer: Any, context: ModificationContext) -> Modified:
        """Apply every part; the proof holds each part's own."""
        proof: dict[str, Any] = {}
        for name, part in self._parts.items():
            modified = part.apply(model, tokenizer, replace(context, before=(*context.before, *proof)))
            model, proof[name] = modified.model, modified.proof
        return Modified(model, proof)

    def work(self, counter: "Counter", rows: Mapping[str, Sequence[dict[str, str]]]) -> "Work":
        """Count what all parts compute."""
        from fpbench.models.costs import Work

        return sum((part.work(counter, rows) for part in self.parts), Work())


# Checks that several modifications share.


def require_effect(what: str, change: float) -> None:
    """Refuse a modification that left the weights as they were, or broke them.

    Raises:
        CellError: if ``change``, ‖ΔW‖/‖W‖ or another measure of which 0 means none, is not positive and finite.
    """
    if not 0 < change < float("inf"):  # NaN fails this, too
        raise CellError(f"{what} changed the weights by a relative {change:g}: expected above 0, finite.")


def changed_from_base(
    name: str, model: "nn.Module", base: Mapping[str, "Tensor"]
) -> dict[str, tuple["Tensor", "Tensor"]]:
    """Return the parameters in which a model differs from its base: name → (its own, the base's on its device).

    Raises:
        InputError: if the base is not known, or is no base of this model.
        CellError: if nothing differs.
    """
    if not base:
        raise InputError(
            f"condition {name!r} compares with the unfingerprinted base, whose weights are not known: give the base."
        )
    own = dict(model.named_parameters())
    if _shapes(own) != _shapes(base):
        odd = min(_shapes(own).items() ^ _shapes(base).items())[0]
        raise InputError(f"condition {name!r}: the base differs in the shape of {odd}; give the model's own base.")
    changed = {}
    for key, value in own.items():
        before = base[key].to(value.device)
        if bool((value != before).any()):
            changed[key] = (value.detach(), before)
    if not changed:
        raise CellError(f"condition {name!r} compares with the base, and no weight differs from it.")
    return changed


def _shapes(weights: Mapping[str, "Tensor"]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in weights.items()}
