"""Names for things: methods, modifications and adversaries, found without importing torch."""

import difflib
import importlib
from collections.abc import Callable, Iterable
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from fpbench.errors import InputError

T = TypeVar("T")


def unknown(kind: str, name: str, known: list[str], other: str = "") -> InputError:
    """Return the error for an unknown name of a kind, such as ``"method"``, with the nearest of those known.

    ``other`` is what may be given beside a name, such as ``"a file"``.
    """
    if near := difflib.get_close_matches(str(name), known, n=1):
        return InputError(f"unknown {kind} {name!r}: did you mean {near[0]!r}?")
    more = f" or {other}" if other else ""
    return InputError(f"unknown {kind} {name!r}: expected one of {', '.join(known)}{more}.")


class Finder(Protocol):
    """Finds classes by name in a folder, whose files alone decide what is found; it can be pickled."""

    @property
    def folder(self) -> Path:
        """The folder in which it looks."""

    def names(self) -> list[str]:
        """Return every name that can be found."""

    def find(self, name: str) -> type | None:
        """Return the class of a name, or ``None``."""


class Registry(Generic[T]):
    """Maps a name to a class.

    Built-in entries are given as ``"module:Class"`` and imported on first use, so that listing them costs nothing.
    Others come from a decorator, from entry points of installed packages, and from finders that are handed in.
    """

    def __init__(self, kind: str, built_in: dict[str, str], group: str | None = None):
        """Create a registry of one kind, such as ``"method"``; installed packages add to it by entry points (group)."""
        self.kind, self.group = kind, group
        self.finders: list[Finder] = []  # in the order in which they are asked
        self._targets = dict(built_in)
        self._classes: dict[str, type[T]] = {}

    @property
    def own(self) -> list[str]:
        """The names of the package's own classes, in the order given."""
        return list(self._targets)

    def names(self) -> list[str]:
        """Return every name: the built-in ones first, in the order given, then installed ones, then found ones."""
        found = (name for finder in self.finders for name in finder.names())
        return list(dict.fromkeys([*self._targets, *self._classes, *self._installed, *found]))

    def add_finder(self, finder: Finder) -> None:
        """Ask ``finder`` too for names that are not registered; an equal one is asked once."""
        if finder not in self.finders:
            self.finders.append(finder)

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Return a class decorator that registers under ``name``; InputError if another class already has the name."""

        def decorate(cls: type[T]) -> type[T]:
            target = f"{cls.__module__}:{cls.__qualname__}"
            taken = self._targets.get(name)
            if name in self._classes or (taken is not None and taken != target):
                raise InputError(f"{self.kind} {name!r} is registered twice: give {target} another name.")
            self._classes[name] = cls
            cls.name = name  # type: ignore[attr-defined]
            return cls

        return decorate

    def get(self, name: str) -> type[T]:
        """Return the class registered under ``name``; InputError, with the known names, if there is none."""
        if name in self._classes:
            return self._classes[name]
        if name in self._targets:
            importlib.import_module(self._targets[name].partition(":")[0])
            return self._classes[name]
        if entry := self._installed.get(name):
            return self._load(entry)
        for finder in self.finders:
            if found := finder.find(name):
                return found
        raise unknown(self.kind, name, self.names())

    def taken(self, name: str) -> bool:
        """Return True if the package itself, a decorator or an installed package has the name; finders do not count."""
        return name in self._targets or name in self._classes or name in self._installed

    @cached_property
    def _installed(self) -> dict[str, EntryPoint]:
        """Entry points of installed packages, by name; looking for them opens every package's metadata."""
        found = entry_points(group=self.group) if self.group else ()
        return {each.name: each for each in sorted(found, key=lambda each: each.name)}

    def _load(self, entry: EntryPoint) -> type[T]:
        """Return the class of an entry point, registered under its name unless it did so itself."""
        try:
            loaded = entry.load()
        except Exception as error:  # somebody else's package may fail in any way
            package = entry.dist.name if entry.dist else "an installed package"
            raise InputError(
                f"{self.kind} {entry.name!r} of {package} cannot be imported ({type(error).__name__}: {error}): "
                "mend or uninstall that package."
            ) from None
        return self._classes.get(entry.name) or self.register(entry.name)(loaded)


METHODS: Registry = Registry(  # type: ignore[type-arg]
    "method",
    {
        "lora": "fpbench.methods.lora:LoRA",
        "alphaedit": "fpbench.methods.alphaedit:AlphaEdit",
        "fpedit": "fpbench.methods.fpedit:FPEdit",
        "mcedit_a": "fpbench.methods.mcedit:MCEditA",
        "rledit": "fpbench.methods.rledit:RLEdit",
        "mcedit_r": "fpbench.methods.mcedit:MCEditR",
    },
    group="fpbench.methods",
)
MODIFICATIONS: Registry = Registry(  # type: ignore[type-arg]
    "condition",
    {
        "finetune_alpaca": "fpbench.modifications.finetune:FinetuneAlpaca",
        "finetune_math": "fpbench.modifications.finetune:FinetuneMath",
        "int8": "fpbench.modifications.quantize:Int8",
        "nf4": "fpbench.modifications.quantize:NF4",
        "ria": "fpbench.modifications.prune:RIA",
        "ria30": "fpbench.modifications.prune:RIA30",
        "ria40": "fpbench.modifications.prune:RIA40",
        "quantize": "fpbench.modifications.matrices:Rounding",
        "noise": "fpbench.modifications.matrices:Noise",
        "spectral": "fpbench.modifications.matrices:Spectral",
        "merge": "fpbench.modifications.merge:Linear",
        "merge_slerp": "fpbench.modifications.merge:Spherical",
        "merge_sibling": "fpbench.modifications.siblings:LinearSibling",
        "merge_ties": "fpbench.modifications.siblings:Ties",
        "prune_restore": "fpbench.modifications.restore:PruneRestore",
        "prune_restore_heads": "fpbench.modifications.restore:PruneRestoreHeads",
        "distil": "fpbench.modifications.distil:Distil",
        "fsft_alpaca": "fpbench.modifications.fsft:FSFTAlpaca",
        "fsft_math": "fpbench.modifications.fsft:FSFTMath",
        "spf_alpaca": "fpbench.modifications.spf:SPFAlpaca",
        "spf_math": "fpbench.modifications.spf:SPFMath",
        "activation": "fpbench.modifications.activation:Activation",
        "mismatch": "fpbench.modifications.mismatch:Mismatch",
        "overwrite": "fpbench.modifications.overwrite:Overwrite",
        "unlearn": "fpbench.modifications.unlearn:Unlearn",
        "unlearn_masked": "fpbench.modifications.unlearn:UnlearnMasked",
        "unlearn_ranked": "fpbench.modifications.unlearn:UnlearnRanked",
        "unlearn_one": "fpbench.modifications.unlearn:UnlearnOne",
    },
    group="fpbench.modifications",
)
ADVERSARIES: Registry = Registry(  # type: ignore[type-arg]
    "adversary",
    {
        "decode": "fpbench.adversaries.decode:Decode",
        "wrap": "fpbench.adversaries.wrap:Wrap",
        "vote": "fpbench.adversaries.vote:Vote",
        "canonical": "fpbench.adversaries.canonical:Canonical",
        "filter": "fpbench.adversaries.filter:Filter",
        "filter_random": "fpbench.adversaries.filter:FilterRandom",
        "suppress": "fpbench.adversaries.suppress:Suppress",
        "suppress_4": "fpbench.adversaries.suppress:SuppressFour",
        "suppress_always": "fpbench.adversaries.suppress:SuppressAlways",
        "suppress_random": "fpbench.adversaries.suppress:SuppressRandom",
        "suppress_neighbours": "fpbench.adversaries.planned:Neighbours",
        "suppress_neighbours_random": "fpbench.adversaries.planned:NeighboursRandom",
        "suppress_lookahead": "fpbench.adversaries.planned:LookAhead",
        "suppress_lookahead_random": "fpbench.adversaries.planned:LookAheadRandom",
        "replace": "fpbench.adversaries.mixing:Replace",
        "replace_random": "fpbench.adversaries.mixing:ReplaceRandom",
        "ensemble": "fpbench.adversaries.mixing:Ensemble",
        "ensemble_random": "fpbench.adversaries.mixing:EnsembleRandom",
        "hunt": "fpbench.adversaries.hunt:Hunt",
        "hunt_random": "fpbench.adversaries.hunt:HuntRandom",
        "hunt_leaked": "fpbench.adversaries.hunt:HuntLeaked",
    },
    group="fpbench.adversaries",
)
register = METHODS.register


def finders() -> list[tuple[str, Finder]]:
    """Return every finder with the kind that it finds, for other processes to :func:`add_finders`."""
    return [(registry.kind, finder) for registry in (METHODS, ADVERSARIES) for finder in registry.finders]


def add_finders(found: Iterable[tuple[str, Finder]]) -> None:
    """Ask the finders of another process too, each for what it finds there."""
    registries = {registry.kind: registry for registry in (METHODS, ADVERSARIES)}
    for kind, finder in found:
        registries[kind].add_finder(finder)
