"""Names for things: methods and modifications, found without importing torch."""

import difflib
import importlib
from collections.abc import Callable
from typing import Generic, TypeVar

from fpbench.errors import InputError

T = TypeVar("T")


def unknown(kind: str, name: str, known: list[str]) -> InputError:
    """The error for a name that nobody registered, with the nearest known one.

    Args:
        kind: what was asked for, such as ``"method"``.
        name: the name that was not found.
        known: every name that would have been accepted.
    """
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "choose one of them."
    return InputError(f"unknown {kind} {name!r}: expected one of {', '.join(known)}; {hint}")


class Registry(Generic[T]):
    """Maps a name to a class.

    Built-in entries are given as ``"module:Class"`` and imported on first use, so that listing them costs nothing.
    """

    def __init__(self, kind: str, built_in: dict[str, str]) -> None:
        """Create a registry for one ``kind`` of thing with its ``built_in`` targets."""
        self.kind = kind
        self._targets = dict(built_in)
        self._classes: dict[str, type[T]] = {}

    def names(self) -> list[str]:
        """Every registered name: the built-in ones first, in the order given."""
        return [*self._targets, *(name for name in self._classes if name not in self._targets)]

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Return a class decorator that registers under ``name``.

        Raises:
            InputError: if another class already has the name.
        """

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
        """Return the class registered under ``name``.

        Raises:
            InputError: if nobody registered it; the message lists the known names.
        """
        if name not in self._classes:
            if name not in self._targets:
                raise unknown(self.kind, name, self.names())
            module, _, _ = self._targets[name].partition(":")
            importlib.import_module(module)
        return self._classes[name]


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
)
MODIFICATIONS: Registry = Registry(  # type: ignore[type-arg]
    "condition",
    {
        "finetune_alpaca": "fpbench.modifications.finetune:FinetuneAlpaca",
        "finetune_math": "fpbench.modifications.finetune:FinetuneMath",
        "int8": "fpbench.modifications.quantize:Int8",
        "nf4": "fpbench.modifications.quantize:NF4",
        "ria30": "fpbench.modifications.prune:RIA30",
        "ria40": "fpbench.modifications.prune:RIA40",
        "merge": "fpbench.modifications.merge:Linear",
        "merge_slerp": "fpbench.modifications.merge:Spherical",
        "fsft_alpaca": "fpbench.modifications.fsft:FSFTAlpaca",
        "fsft_math": "fpbench.modifications.fsft:FSFTMath",
    },
)
register = METHODS.register
