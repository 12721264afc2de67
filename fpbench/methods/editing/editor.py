"""What AlphaEdit, FPEdit and MCEdit_A have in common: one closed-form edit inside the null space of plain text."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from pydantic import Field, ValidationInfo, field_validator
from torch import nn

from fpbench.errors import CellError, InputError
from fpbench.fingerprints import FingerprintSet
from fpbench.methods.base import FingerprintMethod, InjectionContext, MethodConfig
from fpbench.methods.editing.objective import Objective, Row
from fpbench.methods.editing.target_values import Descent, optimise
from fpbench.methods.editing.write import Prompts, write
from fpbench.models.layout import layout

RELATIVE = {"depth": "layers", "v_relative_rate": "v_learning_rate", "nullspace_share": "nullspace_threshold"}
"""Hyper-parameters that suit models of any size, and those of the papers that they stand in for."""


class EditingConfig(MethodConfig):
    """Hyper-parameters of a closed-form edit.

    Attributes:
        layers: numbers of the edited blocks, from 0; or else
        depth: ``(a, b)``, the blocks ℓ of L with a ≤ ℓ/L < b.
        v_learning_rate: Adam's rate for δ; or else
        v_relative_rate: Adam's rate for δ in units of the root mean square of v₀.
        steps: forward passes of the descent; one update fewer.
        clamp: c, the bound ‖δ‖ ≤ c‖v₀‖.
        weight_decay: ω (AlphaEdit) or β (MCEdit), the weight of δ's size in the loss.
        early_stop: the loss at which a request is done.
        nullspace_threshold: τ, the eigenvalue below which a direction is free; or else
        nullspace_share: the fraction of directions that is free, smallest eigenvalues first.
        ridge: λ, called L2 in the references.
    """

    layers: tuple[int, ...] | None = Field(default=None, min_length=1)
    depth: tuple[float, float] | None = Field(default=None, validate_default=True)
    v_learning_rate: float | None = Field(default=None, gt=0)
    v_relative_rate: float | None = Field(default=None, gt=0, validate_default=True)
    steps: int = Field(ge=2)
    clamp: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    early_stop: float
    nullspace_threshold: float | None = Field(default=None, gt=0)
    nullspace_share: float | None = Field(default=None, gt=0, le=1, validate_default=True)
    ridge: float = Field(gt=0)

    @field_validator(*RELATIVE)
    @classmethod
    def _one_of_two(cls, value: Any, info: ValidationInfo) -> Any:
        absolute = RELATIVE[str(info.field_name)]
        if (value is None) == (info.data.get(absolute) is None):
            raise ValueError(f"give either {absolute!r} or {info.field_name!r}, not both and not neither")
        return value


@dataclass(frozen=True)
class Problem:
    """An edit in numbers.

    Attributes:
        requests: for each of n requests the prompts that its key is taken from.
        rows: the sequences that its target value is optimised on.
        objective: the loss of each request over them.
    """

    requests: Sequence[Prompts]
    rows: Sequence[Row]
    objective: Objective


class NullSpaceEditor(FingerprintMethod):
    """Injects a set by one closed-form edit; a subclass says what is to be edited."""

    class Config(EditingConfig):
        """See :class:`EditingConfig`."""

    @abstractmethod
    def problem(
        self, model: nn.Module, tokenizer: Any, fingerprints: FingerprintSet, context: InjectionContext
    ) -> Problem:
        """Turn the fingerprints into token ids and a loss."""

    def inject(self, model: nn.Module, tokenizer: Any, fingerprints: FingerprintSet, context: InjectionContext) -> None:
        """Statistics, target values, write: docs/methods.md §2.2, steps 1 to 8.

        Raises:
            CellError: if the target values are not finite.
        """
        config = self.config
        blocks = self.blocks(model)
        names = {block: layout(model).down_proj_name(block) for block in blocks}
        statistics = context.statistics(model, list(names.values()))
        null_spaces = {
            block: statistics[name].null_space(threshold=config.nullspace_threshold, share=config.nullspace_share)
            for block, name in names.items()
        }
        problem = self.problem(model, tokenizer, fingerprints, context)

        start = perf_counter()
        descent = Descent(config.v_learning_rate, config.v_relative_rate, config.steps, config.clamp, config.early_stop)
        v0, delta = optimise(model, blocks[-1], problem.rows, problem.objective, descent, context.progress)
        if not delta.isfinite().all():
            raise CellError(
                "the target values are not finite: lower v_learning_rate or v_relative_rate, "
                "or check that the model's weights are finite."
            )
        optimised = perf_counter()
        written = write(model, blocks, problem.requests, (v0 + delta).T, null_spaces, config.ridge)
        context.factors |= {f"{names[block]}.weight": each.factors for block, each in written.items()}
        context.seconds["optimisation"] = optimised - start
        context.seconds["write"] = perf_counter() - optimised

    def blocks(self, model: nn.Module) -> list[int]:
        """Numbers of the edited blocks, ascending.

        Raises:
            InputError: if the model has no such block.
        """
        count = len(layout(model).blocks)
        if self.config.layers is not None:
            blocks = sorted(set(self.config.layers))
        else:
            low, high = self.config.depth
            blocks = [block for block in range(count) if low <= block / count < high]
        if not blocks or blocks[0] < 0 or blocks[-1] >= count:
            raise InputError(f"edited blocks must lie in 0 … {count - 1}, found {blocks}: set 'layers'.")
        return blocks

    def edited(self, model: nn.Module) -> list[str]:
        """The FFN output projections of the edited blocks."""
        return [f"{layout(model).down_proj_name(block)}.weight" for block in self.blocks(model)]
