"""A row's removal figures: what each thief leaves of its fingerprints, and at what price (docs/adversaries.md)."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from typing import Any, Literal

from fpbench.adversaries.conditions import (
    JOINT,
    against_base,
    is_attack,
    known,
    level,
    name_of,
    parts,
    priced_on_base,
)
from fpbench.adversaries.price import LONG, SHORT, Price
from fpbench.board.groups import Group
from fpbench.metrics.claims import claim
from fpbench.metrics.removal import (
    BUDGETS,
    POWER,
    Attempt,
    RemovalPrice,
    Step,
    View,
    blind,
    course,
    fingerprint_prices,
    oracle,
    removal_price,
    within,
)
from fpbench.metrics.statistics import clopper_pearson
from fpbench.records.cell import BASE, ORIGIN

WORST = ("L1", "L3")  # levels up to which the worst adversary has a column
HIGHEST = "L3"  # of the thieves that removal prices are of; one who has leaked pairs (L4) is not blind

Product = Literal["long", "short"]  # what the thief serves, and so what he loses
CHANNELS: Mapping[Product, Sequence[str]] = {"long": LONG, "short": SHORT}


@dataclass(frozen=True)
class Attacked:
    """One condition, seeds pooled.

    Attributes:
        long: price of long answers, mean over seeds; ``None`` where it was not measured, and for ``short`` too.
        long_interval: of the channel that decides it, mean over seeds of either bound.
        tasks: accuracy on the tasks that it costs, a part of ``short``, where that was asked for.
        price_of: ``"base"`` where the price was measured on the base, for every method.
    """

    fsr: float
    interval: tuple[float, float]
    long: float | None = None
    long_interval: tuple[float, float] | None = None
    short: float | None = None
    short_interval: tuple[float, float] | None = None
    tasks: float | None = None
    tasks_interval: tuple[float, float] | None = None
    price_of: str | None = None


@dataclass(frozen=True)
class Left:
    """Hold what a thief leaves from a budget on.

    Attributes:
        price: what he attains, which may lie on either side of the budget.
        fsr: mean over the fingerprints of all seeds, and its interval over them.
        chosen: the condition he takes for each seed.
    """

    budget: float
    price: float
    fsr: float
    interval: tuple[float, float]
    chosen: tuple[str, ...]

    @classmethod
    def at(cls, step: Step, budget: float | None = None) -> "Left":
        """Return the figures of a step, by default at its own budget."""
        chosen = tuple(each.condition for each in step.chosen.values())
        return cls(step.budget if budget is None else budget, step.price, step.fsr, step.interval, chosen)


@dataclass(frozen=True)
class Thief:
    """What an adversary, or the worst of several, leaves within each budget.

    Attributes:
        within: by budget, as ``"0.1"`` for 10 %; empty where nothing could be tried.
        edge: the FSR that the oracle leaves within the same budgets; none where the thief is the oracle.
        missing: conditions that failed or were not measured, so that he may do better than is shown.
    """

    within: dict[str, Left]
    edge: dict[str, float]
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClaimedThief:
    """Figures of a submitted adversary on a row, as its submitter measured them, the row and its base included.

    Attributes:
        of: number of cells handed in whose figure can be compared.
        compared: how many of these were measured here, too.
        outside: how many of those are not within what is allowed.
    """

    thief: Thief
    of: int
    compared: int
    outside: int

    @property
    def told(self) -> str:
        """Return in words how many of the cells were measured here, too, and how many of these disagree."""
        outside = f", {self.outside} of them outside" if self.outside else ""
        return f"claimed, {self.compared}/{self.of} cells compared{outside}"


@dataclass(frozen=True)
class Removal:
    """The removal figures of a row.

    Attributes:
        thief: ``"blind"``, who tunes on the other seeds, or ``"oracle"`` where there is one seed only.
        conditions: what each adversary at each dose does.
        adversaries: by name, with its doses to choose from.
        worst: by level, with every adversary up to it.
        long: removal price for who serves long answers; ``None`` without a base, against which a claim is tested.
        short: the same for short answers; ``None``, too, where no condition has such a price.
        course: by budget, what the thief leaves who chooses among all adversaries up to L3.
        edge: the same of the oracle; empty where the thief is the oracle.
        power: of the ownership claim at origin, mean over seeds; ``None`` without a base.
        missing: conditions up to L3 that failed, or that other rows of the table have and this one lacks.
        unpriced: those and the ones without a price of short answers, as where the model knows too few.
        claimed: adversaries that somebody handed in and of which not every cell was measured here; what was, counts
            among ``adversaries``, and no other figure holds anything of the rest.
        rank: by the removal price of each fingerprint; ``None`` for a row that is out.
        out: why it has no rank; ``None`` for a base.
    """

    thief: Literal["blind", "oracle"]
    conditions: dict[str, Attacked]
    adversaries: dict[str, Thief]
    worst: dict[str, Thief]
    long: RemovalPrice | None
    short: RemovalPrice | None
    course: list[Left]
    edge: list[Left]
    power: float | None
    missing: tuple[str, ...] = ()
    unpriced: tuple[str, ...] = ()
    claimed: dict[str, ClaimedThief] = field(default_factory=dict)
    rank: int | None = None
    out: str | None = None

    @property
    def claimable(self) -> bool:
        """Whether there is anything to remove: the claim holds at origin."""
        return self.power is not None and self.power >= POWER

    def to_dict(self) -> dict[str, Any]:
        """Return it as it stands in a row; claims of adversaries, and the loss on tasks, only where there are any."""
        found = asdict(self)
        for each in found["conditions"].values():
            if each["tasks"] is None:
                del each["tasks"], each["tasks_interval"]
        return {name: each for name, each in found.items() if name != "claimed" or each}


def adversary_of(condition: str) -> str:
    """Return the adversaries that a condition names, without their doses."""
    return JOINT.join(name_of(part) for part in parts(condition))


def attacks(groups: Collection[Group]) -> list[str]:
    """Return the conditions of a table that are attacks, by adversary."""
    found = {condition for group in groups for condition, _ in group.cells if is_attack(condition)}
    order = in_order({adversary_of(each) for each in found})
    return sorted(found, key=lambda each: (order.index(adversary_of(each)), each))


def in_order(adversaries: Collection[str]) -> list[str]:
    """Return adversaries in the order of the registries, compositions after them by name."""
    order = {name: number for number, name in enumerate(known())}
    return sorted(adversaries, key=lambda each: (order.get(each, len(order)), each))


def removal(
    group: Group, base: Group | None, asked: Collection[str] = (), idle: Collection[str] = ()
) -> Removal | None:
    """Return the removal figures of a row, or ``None`` if nobody attacked it or it has no FSR at origin.

    ``asked`` are the conditions that its table has; those that this row lacks are missing. So are those that were
    ``idle``, without an effect on this checkpoint: what they leave is no resistance.

    Raises:
        InputError: if the items of a price are not those of the same model at origin.
    """
    own = attacks([group])
    if not own or not group.by_seed():
        return None
    wanted = _wanted(group, asked)
    effective = [each for each in wanted if each not in idle]
    seeds = attacked_seeds(group)
    tried = {product: replace(Tried.of(group, base, effective, product, seeds), wanted=wanted) for product in CHANNELS}
    first = tried["long"]
    alone, single = oracle(seeds), len(seeds) == 1
    thief = _thief(seeds)
    steps = {product: each.course(thief, each.upto(HIGHEST)) for product, each in tried.items()}
    power = _power(group, base)

    def figures(conditions: Sequence[str]) -> Thief:
        missing = first.missing(conditions)
        if len(missing) == len(conditions):
            return Thief({}, {}, missing)
        best, edge = first.course(thief, conditions), first.course(alone, conditions)
        return Thief(
            {f"{budget:g}": Left.at(within(best, budget), budget) for budget in BUDGETS},
            {} if single else {f"{budget:g}": within(edge, budget).fsr for budget in BUDGETS},
            missing,
        )

    names = dict.fromkeys(adversary_of(each) for each in wanted)
    return Removal(
        thief="oracle" if single else "blind",
        conditions={each: found for each in own if (found := _attacked(group, base, each)) is not None},
        adversaries={name: figures([each for each in wanted if adversary_of(each) == name]) for name in names},
        worst={most: figures(first.upto(most)) for most in WORST},
        long=removal_price(steps["long"], power) if power else None,
        short=removal_price(steps["short"], power) if power and tried["short"].found else None,
        course=[Left.at(step) for step in steps["long"]],
        edge=[] if single else [Left.at(step) for step in first.course(alone, first.upto(HIGHEST))],
        power=fmean(power(seed, p) for seed, p in first.nothing.p.items()) if power else None,
        missing=first.missing(first.upto(HIGHEST)),
        unpriced=tried["short"].missing(first.upto(HIGHEST)),
    )


def cheapest(
    group: Group, base: Group | None, most: str, asked: Collection[str] = (), idle: Collection[str] = ()
) -> Left | None:
    """Return where a thief up to a threat level stands who pays the removal price of long answers, and no more.

    Up to the highest level it is the step that gives :attr:`Removal.long`; for ``asked`` and ``idle`` see
    :func:`removal`. ``None`` where no dose is enough up to 25 %, or there is nothing to tell by.
    """
    seeds, power = attacked_seeds(group), _power(group, base)
    if not seeds or power is None:
        return None
    effective = [each for each in _wanted(group, asked) if each not in idle]
    tried = Tried.of(group, base, effective, "long", seeds)
    steps = tried.course(_thief(seeds), tried.upto(most))
    price = removal_price(steps, power).high
    enough = (each for each in steps if each.price == price and removal_price([each], power).high == price)
    return None if price is None else Left.at(next(enough))


def attacked_seeds(group: Group) -> list[int]:
    """Return the seeds at which each attack on a row was tried, failed ones included, or all if there is no such seed.

    A further seed may have fewer conditions than the first; what a thief chooses from is the same for every seed.
    """
    tried = [{each.cell.seed for each in group.get("fsr", condition)} for condition in attacks([group])]
    seeds = list(group.by_seed())
    return [seed for seed in seeds if all(seed in found for found in tried)] or seeds


def _thief(seeds: Sequence[int]) -> View:
    """Return how a thief sees these seeds: blind to the one that is scored, or the oracle where there is no other."""
    return blind(seeds) if len(seeds) > 1 else oracle(seeds)


def _wanted(group: Group, asked: Collection[str]) -> list[str]:
    """Return the attacks on a row, and those of its table that it lacks and that mean something on it."""
    return list(dict.fromkeys([*attacks([group]), *(each for each in asked if not _pointless(group, each))]))


def _power(group: Group, base: Group | None) -> Callable[[int, Sequence[float]], float] | None:
    """Return the power of the ownership claim on a seed, given its p_i; ``None`` without a base to test it against."""
    null = base.by_seed() if base is not None and base is not group else {}
    if not null.keys() >= group.by_seed().keys():
        return None
    return lambda seed, p: claim(p, [null[seed]]).power


def prices_by_fingerprint(group: Group, base: Group | None, seeds: Sequence[int]) -> list[float]:
    """Return what the removal of each fingerprint of these seeds costs, at most 25 %, seeds one after another."""
    tried = Tried.of(group, base, attacks([group]), "long", seeds)
    steps = tried.course(_thief(seeds), tried.upto(HIGHEST))
    found = fingerprint_prices(steps, tried.nothing)
    return [price for seed in seeds for price in found[seed]]


@dataclass(frozen=True)
class Tried:
    """Hold the attempts on a row: to do nothing, and each condition that all of some seeds have, with its price."""

    nothing: Attempt
    wanted: Sequence[str]
    found: Mapping[str, Attempt] = field(default_factory=dict)

    @classmethod
    def of(
        cls, group: Group, base: Group | None, wanted: Sequence[str], product: Product, seeds: Sequence[int]
    ) -> "Tried":
        """Gather the attempts of a row on some of its seeds."""
        origin = group.by_seed()
        found = {}
        for condition in wanted:
            p, prices = group.by_seed(condition), _prices(group, base, condition)
            price: dict[int, float | None] = {seed: getattr(each, product) for seed, each in prices.items()}
            paid = {seed: each for seed in seeds if (each := price.get(seed)) is not None}
            if set(seeds) <= p.keys() & paid.keys():
                found[condition] = Attempt(condition, {seed: p[seed] for seed in seeds}, paid)
        nothing = Attempt(ORIGIN, {seed: origin[seed] for seed in seeds}, dict.fromkeys(seeds, 0.0))
        return cls(nothing, wanted, found)

    def upto(self, most: str) -> list[str]:
        """Return the conditions whose threat level is at most ``most``."""
        return [each for each in self.wanted if level(each) <= most]

    def missing(self, conditions: Sequence[str]) -> tuple[str, ...]:
        """Return those of the conditions that there is no attempt of."""
        return tuple(each for each in conditions if each not in self.found)

    def course(self, thief: View, conditions: Sequence[str]) -> list[Step]:
        """Return what a thief does who has these conditions to choose from."""
        return course(self.nothing, [self.found[each] for each in conditions if each in self.found], thief)


def _pointless(group: Group, condition: str) -> bool:
    """Return whether a condition means nothing on a row, as merging the base with itself does."""
    return group.key[2] == BASE and against_base(condition)


def _prices(group: Group, base: Group | None, condition: str) -> dict[int, Price]:
    """Return what a condition costs by seed: measured on the row if it changes weights, and otherwise on the base."""
    of = base if priced_on_base(condition) else group
    return {} if of is None else of.prices(condition)


def _attacked(group: Group, base: Group | None, condition: str) -> Attacked | None:
    p = [each for found in group.by_seed(condition).values() for each in found]
    if not p:
        return None
    prices = list(_prices(group, base, condition).values())
    on_base = base is not None and base is not group and priced_on_base(condition)
    figures: dict[str, Any] = {}
    for product, channels in CHANNELS.items() if prices else ():
        paid = [getattr(each, product) for each in prices]
        if None in paid:
            continue
        figures[product] = fmean(paid)
        deciding = [
            max((each.channels[name] for name in channels if name in each.channels), key=lambda loss: loss.value)
            for each in prices
        ]
        figures[f"{product}_interval"] = (fmean(x.low for x in deciding), fmean(x.high for x in deciding))
    tasks = [each.channels["tasks"] for each in prices if "tasks" in each.channels]
    if tasks and len(tasks) == len(prices):
        figures["tasks"] = fmean(each.value for each in tasks)
        figures["tasks_interval"] = (fmean(each.low for each in tasks), fmean(each.high for each in tasks))
    return Attacked(
        fmean(p), clopper_pearson(sum(p), len(p)), price_of="base" if prices and on_base else None, **figures
    )
