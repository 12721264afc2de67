"""A condition by its name: parts joined by ``+``, each ``name[@dose]``, applied in order (protocol §1)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fpbench.adversaries.base import Adversary
from fpbench.errors import InputError
from fpbench.modifications.base import Composition, Modification
from fpbench.records.cell import ORIGIN
from fpbench.registry import ADVERSARIES, MODIFICATIONS, unknown

JOINT, AT = "+", "@"
OF_A_FINGERPRINT = ("fingerprints", "leaked", "method")  # what a part may need that an unfingerprinted base has not
PRESETS = {
    "drift": "origin and the six modifications whose mean is AVG",
    "removal": "origin, and every adversary and modification that has doses, at each of them",
    "all": "drift and removal",
}


def parts(condition: str) -> list[str]:
    """Return the parts of a condition, in order, with their doses."""
    return condition.split(JOINT)


def name_of(part: str) -> str:
    """Return the name of a part, without its dose."""
    return part.partition(AT)[0]


def taken(name: str) -> bool:
    """Return True for a name that means something in conditions already; submissions do not count."""
    return name in (ORIGIN, *PRESETS) or MODIFICATIONS.taken(name) or ADVERSARIES.taken(name)


def known() -> list[str]:
    """Return the names that a part of a condition may have."""
    return [*MODIFICATIONS.names(), *(name for name in ADVERSARIES.names() if name not in MODIFICATIONS.names())]


def class_of(name: str) -> type[Modification] | type[Adversary]:
    """Return the class of a part by its name.

    A name that is not registered here, as in records from elsewhere, or is that of a submission that is refused, has
    :class:`Modification` with its defaults.
    """
    for registry in (MODIFICATIONS, ADVERSARIES):
        if registry.taken(name):
            found: type[Modification] | type[Adversary] = registry.get(name)
            return found
    try:
        handed_in: type[Adversary] = ADVERSARIES.get(name)
    except InputError:
        return Modification
    return handed_in


def modifications(condition: str) -> list[type[Modification]]:
    """Return the classes of the modifications that a condition names, in order."""
    found = [class_of(name_of(part)) for part in parts(condition)]
    return [each for each in found if issubclass(each, Modification)]


def weights_parts(condition: str) -> list[str]:
    """Return those parts of a condition that change weights, in order."""
    named = {} if condition == ORIGIN else {part: class_of(name_of(part)) for part in parts(condition)}
    return [
        part
        for part, found in named.items()
        if issubclass(found, Modification) or found.weights is not Adversary.weights
    ]


def changes_weights(condition: str) -> bool:
    """Return whether a condition has a weights part."""
    return bool(weights_parts(condition))


def priced_on_base(condition: str) -> bool:
    """Return whether a condition has one price for all methods, measured on the base: it does the same to any model."""
    return not changes_weights(condition) and not any(
        getattr(class_of(name_of(part)), "finds", False) for part in parts(condition)
    )


def is_attack(condition: str) -> bool:
    """Return whether a condition has a price: an adversary, or a modification at a dose."""
    return condition != ORIGIN and any(AT in part or issubclass(class_of(part), Adversary) for part in parts(condition))


def level(condition: str) -> str:
    """Return the threat level of a condition, that of its highest part."""
    return max(class_of(name_of(part)).level for part in parts(condition))


def proofs(condition: str, proof: Any) -> dict[str, Any]:
    """Return what a record's proof holds of each modification that its condition names, by its part."""
    of_weights = [part for part in parts(condition) if issubclass(class_of(name_of(part)), Modification)]
    if len(of_weights) == 1 and not (isinstance(proof, Mapping) and of_weights[0] in proof):  # a stranger's may be any
        return {of_weights[0]: proof}
    return {part: proof[part] for part in of_weights if part in proof}


def without_effect(condition: str, proof: Mapping[str, Any], base: Mapping[str, Any]) -> str | None:
    """Return the first part of a condition that had no effect on a checkpoint, and why, against the base's proof."""
    others = proofs(condition, base)
    for part, own in proofs(condition, proof).items():
        if part in others and (reason := modifications(part)[0].without_effect(own, others[part])):
            return f"{part}: {reason}"
    return None


def against_base(condition: str) -> bool:
    """Return whether a condition means nothing on a base: it compares with it, or needs a fingerprint."""
    return any(each.against_base for each in modifications(condition)) or needs(condition, *OF_A_FINGERPRINT)


def needs(condition: str, *names: str) -> bool:
    """Return whether a part of a condition cannot do without one of some things that its class may need."""
    named = () if condition == ORIGIN else parts(condition)
    return any({*names} & {*class_of(name_of(part)).needs} for part in named)


def needs_siblings(condition: str) -> bool:
    """Return whether a part of a condition cannot do without other checkpoints of the same base."""
    return needs(condition, "siblings")


def drift() -> tuple[str, ...]:
    """Return the six conditions whose mean is AVG (protocol §4), in order."""
    return tuple(name for name in MODIFICATIONS.own if MODIFICATIONS.get(name).drift)


def removal() -> tuple[str, ...]:
    """Return every adversary and every modification that has doses, at each of them (docs/adversaries.md).

    Submissions are not among them: they are run by who names them.
    """
    dosed = [(name, class_of(name).dose) for name in known() if taken(name)]
    return tuple(f"{name}{AT}{amount:g}" for name, dose in dosed if dose for amount in dose.list)


def curves(conditions: Iterable[str]) -> dict[tuple[str, ...], list[float]]:
    """Return the doses that conditions ask for of every weights part, ascending, by the parts before it and its name.

    They are doses of one curve: what is applied before is the same.
    """
    found: dict[tuple[str, ...], set[float]] = {}
    for weights in map(weights_parts, conditions):
        for at, part in enumerate(weights):
            if (amount := dose_of(part)) is not None:
                found.setdefault((*weights[:at], name_of(part)), set()).add(amount)
    return {curve: sorted(doses) for curve, doses in found.items()}


def expand(names: Sequence[str]) -> tuple[str, ...]:
    """Return conditions with the presets ``drift``, ``removal`` and ``all`` spelled out, each condition once."""
    found: list[str] = []
    for name in names:
        found += [ORIGIN] if name in PRESETS else [name]
        found += drift() if name in ("drift", "all") else ()
        found += removal() if name in ("removal", "all") else ()
    return tuple(dict.fromkeys(found))


def check(condition: str) -> None:
    """Refuse a condition that cannot be made.

    Raises:
        InputError: if a part is unknown, named twice, has a dose out of range or one that it does not take, or follows
            one after which nothing can be applied to the weights.
    """
    names = [name_of(part) for part in parts(condition)]
    for part, name in zip(parts(condition), names, strict=True):
        if name not in known():
            raise unknown("condition", name, [ORIGIN, *known()])
        dose_of(part)
    if len(set(names)) < len(names):
        raise InputError(f"condition {condition!r} names {max(names, key=names.count)!r} twice: name each part once.")
    weights = [name for name in names if name in MODIFICATIONS.names()]
    for name, following in zip(weights, weights[1:], strict=False):
        if leaves := MODIFICATIONS.get(name).leaves:
            raise InputError(f"condition {condition!r} applies {following!r} to {leaves}: put {name!r} last.")


def create(condition: str, settings: Mapping[str, Mapping[str, Any]]) -> Modification:
    """Create the weights part of a condition; settings are by the modification's name.

    Where a condition has none, it is a composition of nothing.

    Raises:
        InputError: for what :func:`check` refuses, or a malformed setting.
    """
    check(condition)
    created = {}
    for part in parts(condition):
        name = name_of(part)
        if name in MODIFICATIONS.names():
            created[part] = MODIFICATIONS.get(name)(amount=dose_of(part), **settings.get(name, {}))
        elif (own := ADVERSARIES.get(name)(dose_of(part)).weights()) is not None:
            created[part] = own
    return next(iter(created.values())) if len(created) == 1 else Composition(created)


def adversaries(condition: str) -> list[Adversary]:
    """Create the adversaries that a condition names, in order.

    Raises:
        InputError: for what :func:`check` refuses.
    """
    if condition == ORIGIN:
        return []
    check(condition)
    named = [(name_of(part), dose_of(part)) for part in parts(condition)]
    return [ADVERSARIES.get(name)(amount) for name, amount in named if name not in MODIFICATIONS.names()]


def dose_of(part: str) -> float | None:
    """Return the dose of a part; ``None`` where it names none."""
    name, at, text = part.partition(AT)
    if not at:
        return None
    dose = (MODIFICATIONS if name in MODIFICATIONS.names() else ADVERSARIES).get(name).dose
    if dose is None:
        raise InputError(f"condition {part!r}: {name!r} takes no dose; write {name!r} alone.")
    amount: float = dose.read(part, text)
    if f"{amount:g}" != text:
        raise InputError(f"condition {part!r}: write the dose as {name}{AT}{amount:g}, so that it has one name.")
    return amount
