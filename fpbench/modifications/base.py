"""A modification: what somebody does to a released model, with the proof that it happened (protocol §4)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError

from fpbench.errors import InputError
from fpbench.models.progress import no_progress

if TYPE_CHECKING:
    from torch import nn


class ModificationConfig(BaseModel):
    """Settings of a modification; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class ModificationContext:
    """What a modification may know besides the model and its tokenizer.

    Attributes:
        seed: seeds everything random.
        rows: for each fine-tuning set (``"alpaca"``, ``"math"``) its rows with ``instruction``, ``input``, ``output``.
        calibration: plain documents, in order, for activation statistics.
        progress: wraps an iterable in a labelled progress bar.
    """

    seed: int = 42
    rows: dict[str, Sequence[dict[str, str]]] = field(default_factory=dict)
    calibration: Sequence[str] = ()
    progress: Callable[[Iterable[Any], str], Iterable[Any]] = no_progress


@dataclass(frozen=True)
class Modified:
    """A modified model and the proof that something was done to it.

    Attributes:
        model: the model to use from now on.
        proof: figures such as ``sparsity``, ``bits_per_weight``, ``loss_curve``, ``tokens_seen``, ``relative_change``.
    """

    model: "nn.Module"
    proof: dict[str, Any]


class Modification(ABC):
    """Changes a model the way an adversary, or an ordinary user, might."""

    name: ClassVar[str]
    version: ClassVar[str] = "1"

    class Config(ModificationConfig):
        """No settings."""

    def __init__(self, **config: Any) -> None:
        """Validate ``config`` against :class:`Config`.

        Raises:
            InputError: naming the first unknown or malformed setting.
        """
        try:
            self.config: Any = self.Config(**config)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            known = ", ".join(self.Config.model_fields) or "none"
            raise InputError(f"condition {self.name!r}, key {where!r}: {first['msg']}; known keys: {known}.") from None

    @abstractmethod
    def apply(self, model: "nn.Module", tokenizer: Any, context: ModificationContext) -> Modified:
        """Modify ``model``, in place where that is natural; do not go on using the one handed in.

        Raises:
            InputError: if data it needs is not in ``context``.
            CellError: if it had no effect, or produced non-finite weights.
        """
