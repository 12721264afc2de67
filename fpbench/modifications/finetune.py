"""Fine-tuning by a user: LoRA on instruction data, merged (protocol §4).

The learning rate is the largest stable one on the unfingerprinted base, found by a search; it has no default here. With
a dose, so many optimiser steps are taken in place of whole epochs: one training passes all doses of a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from fpbench.errors import CellError, InputError
from fpbench.models.prompts import Example
from fpbench.modifications.base import (
    Dose,
    Modification,
    ModificationConfig,
    ModificationContext,
    Modified,
    is_number,
    require_effect,
)
from fpbench.registry import MODIFICATIONS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fpbench.models.costs import Counter, Phase, Shape, Work
    from fpbench.models.training import LoRAConfig, LowRank, Penalty, Reached

ROWS = 6000  # protocol §4
STRETCH = 5  # steps whose mean loss is one figure of a curve by steps
LEAST_FALL = 0.5  # of the base's fall of the loss, below which a fine-tuning had no effect (protocol §4)


class FineTune(Modification):
    """LoRA on all linear modules, trained on the first rows of one instruction set and merged into the weights."""

    version = "2"
    trains = True
    family = "fine-tuned"
    figures = {
        "loss_curve": lambda value: f"loss {value[0]:.2f} → {value[-1]:.2f}" if value else "no loss",
        "tokens_seen": lambda value: f"{value} tokens",
        **Modification.figures,
    }

    class Config(ModificationConfig):
        """Settings; the paper gives rows and epochs, its rank and batch size are not known (docs/methods.md §3.1)."""

        # peak of the schedule; "search" where a run is to find the largest stable one on the base
        learning_rate: Annotated[float, Field(gt=0)] | Literal["search"]
        rows: int = Field(default=ROWS, ge=1)  # how many, from the first
        epochs: int = Field(default=3, ge=1)  # passes over the rows
        batch_size: int = Field(default=8, ge=1)  # rows a step
        rank: int = Field(default=32, ge=1)  # inner width of the update, as in published attacks
        alpha: int = Field(default=64, ge=1)  # the update is scaled by alpha / rank

    @property
    def source(self) -> str:
        """The instruction set to train on."""
        return self.data[0]

    @property
    def searches(self) -> bool:
        """True if a run is to find the largest stable rate."""
        return bool(self.config.learning_rate == "search")

    def apply(self, model: nn.Module, tokenizer: Any, context: ModificationContext) -> Modified:
        """Train in place on the first ``rows`` rows, of which ``instruction``, ``input`` and ``output`` are used."""
        return self.train(model, tokenizer, context)

    def examples(self, context: ModificationContext, following: int = 0) -> list[Example]:
        """Return the rows to train on, and as many as asked for that follow them.

        Raises:
            InputError: if there are fewer.
        """
        wanted = self.config.rows + following
        rows = context.rows.get(self.source, ())[:wanted]
        if len(rows) < wanted:
            raise InputError(
                f"condition {self.name!r} needs {wanted} rows of the data set {self.source!r}, found {len(rows)}: "
                "give more rows or lower its setting 'rows'."
            )
        return [instruction(row) for row in rows]

    def settings(self, learning_rate: float) -> LoRAConfig:
        """Return the settings of a training at one rate."""
        from fpbench.models.training import LoRAConfig

        return LoRAConfig(learning_rate, **self.config.model_dump(include={"epochs", "batch_size", "rank", "alpha"}))

    def train(
        self,
        model: nn.Module,
        tokenizer: Any,
        context: ModificationContext,
        penalty: Penalty | None = None,
        before_step: Callable[[Mapping[str, LowRank]], None] | None = None,
    ) -> Modified:
        """Train in place, minimising ``penalty`` besides the loss; ``before_step`` may change gradients."""
        from fpbench.models.training import train_lora
        from fpbench.models.weights import weights

        self.require_rate()
        examples, settings = self.examples(context), self.settings(self.config.learning_rate)
        before = weights(model)
        given: dict[str, Any] = {"penalty": penalty, "before_step": before_step}
        curve = train_lora(model, tokenizer, examples, settings, seed=context.seed, progress=context.progress, **given)
        change = relative_change(model, before)
        require_effect(f"{self.name} at learning rate {settings.learning_rate:g}", change)
        proof = {
            "loss_curve": list(curve.epoch_losses),
            "tokens_seen": curve.tokens_seen,
            "steps": curve.steps,
            "truncated_rows": curve.truncated,
            "dropped_rows": curve.dropped,
            "rows": len(examples),
            "learning_rate": settings.learning_rate,
            "relative_change": change,
        }
        return Modified(model, proof)

    def require_rate(self) -> None:
        """Refuse to train as long as the rate is to be searched for."""
        if self.searches:
            raise InputError(
                f"condition {self.name!r} is to search for its learning rate, which only a run on the unfingerprinted "
                "base can: give a number."
            )

    @classmethod
    def without_effect(cls, proof: Mapping[str, Any], base: Mapping[str, Any]) -> str | None:
        """Return also that the loss fell, from the first epoch to the last, by less than half of the base's fall."""
        own, other = (_fall(each.get("loss_curve")) for each in (proof, base))
        if other is not None and other > 0 and not (own is not None and own >= LEAST_FALL * other):
            return f"the loss fell by {own:.2g} against {other:.2g} of the base" if own is not None else "no loss curve"
        return super().without_effect(proof, base)

    def work(self, counter: Counter, rows: Mapping[str, Sequence[dict[str, str]]]) -> Work:
        """Count the training, and comparing with the weights from before."""
        from fpbench.models.costs import Work

        examples = [instruction(row) for row in rows[self.source][: self.config.rows]]
        training = counter.training(examples, self.config.epochs, self.config.batch_size)
        return training + Work(handled=2 * counter.parameters)

    def memory(self, shape: Shape) -> Phase:
        """Count the training, and the weights from before: for the proof, or for a search to come back to."""
        from fpbench.models.costs import Phase, Room

        return Phase(self.name, shape.training(self.config.rank, self.config.batch_size), Room(shape.weights))


def instruction(row: dict[str, str]) -> Example:
    """Return a row of an instruction set in Alpaca's layout, without the section of an empty or missing input."""
    given = f"### Input:\n{row['input']}\n\n" if row.get("input") else ""
    return Example(f"### Instruction:\n{row['instruction']}\n\n{given}### Response:\n", row["output"])


def _fall(curve: Any) -> float | None:
    """Return by how much the loss fell; ``None`` of what is no curve of losses."""
    if isinstance(curve, list | tuple) and len(curve) > 0 and is_number(curve[0]) and is_number(curve[-1]):
        return curve[0] - curve[-1]
    return None


def relative_change(model: nn.Module, before: dict[str, Tensor]) -> float:
    """Return ‖ΔW‖_F / ‖W‖_F over all parameters, given the weights from before by name."""

    def squares() -> Iterator[tuple[float, float]]:
        for name, parameter in model.named_parameters():
            old = before[name].to(parameter.device).float()
            yield (parameter.detach().float() - old).square().sum().item(), old.square().sum().item()

    change, reference = map(sum, zip(*squares(), strict=True))
    return float((change / reference) ** 0.5)


class StepwiseFineTune(FineTune):
    """Fine-tuning over the protocol's epochs, or, with a dose, over so many steps at a rate that stays at its peak."""

    on_the_way = True
    pays = {"data": 1}
    control = "noise"
    dose: ClassVar[Dose | None] = Dose("optimiser steps", default=None, list=(25, 50, 100, 200), least=1, whole=True)

    def apply(self, model: nn.Module, tokenizer: Any, context: ModificationContext) -> Modified:
        """Train in place; with a dose, take the training to the largest that is asked of this checkpoint, once."""
        if math.isnan(self.amount):
            return super().apply(model, tokenizer, context)
        from fpbench.models.training import merge
        from fpbench.models.weights import weights

        reached, before = self.reached(model, tokenizer, context), weights(model)
        merge(model, reached.updates)
        change = relative_change(model, before)
        require_effect(f"{self.name}@{self.amount:g} at learning rate {self.config.learning_rate:g}", change)
        proof = stepwise_proof(reached) | {"learning_rate": self.config.learning_rate, "relative_change": change}
        return Modified(model, proof)

    def reached(self, model: nn.Module, tokenizer: Any, context: ModificationContext) -> Reached:
        """Return the training at the dose: of those kept, or of one that passes all doses that are asked for.

        Raises:
            CellError: if it became non-finite on the way to this dose.
        """
        from fpbench.models.training import train_on_the_way

        self.require_rate()
        curve, steps = (*context.before, self.name), int(self.amount)
        if (*curve, steps) not in context.kept:
            asked = {steps, *map(int, context.doses.get(curve, ()))}
            given = self.examples(context), self.settings(self.config.learning_rate), asked
            found = train_on_the_way(model, tokenizer, *given, seed=context.seed, progress=context.progress)
            context.kept.update({(*curve, step): each for step, each in found.items()})
        kept: Reached | CellError = context.kept[*curve, steps]
        if isinstance(kept, CellError):
            raise kept
        return kept

    @classmethod
    def implausible(cls, proof: Mapping[str, Any], amount: float | None = None) -> str | None:
        """Return that the training stopped at another step than the dose."""
        steps = proof.get("steps")
        return None if amount is None or steps == amount else f"{steps} steps, and not the {amount:g} of its dose"

    def work(self, counter: Counter, rows: Mapping[str, Sequence[dict[str, str]]]) -> Work:
        """Count the epochs, or the share of them that the steps are."""
        from fpbench.models.costs import Work

        if math.isnan(self.amount):
            return super().work(counter, rows)
        examples = [instruction(row) for row in rows[self.source][: self.config.rows]]
        epochs: float = self.amount / math.ceil(len(examples) / self.config.batch_size)
        training = counter.training(examples, 1, self.config.batch_size) * epochs
        return training + Work(handled=4 * counter.parameters)


def stepwise_proof(reached: Reached) -> dict[str, Any]:
    """Return what a proof holds of a training at one of its steps: losses are means over every five steps."""
    losses = reached.losses
    return {
        "loss_curve": [fmean(losses[start : start + STRETCH]) for start in range(0, len(losses), STRETCH)],
        "tokens_seen": reached.tokens_seen,
        "steps": len(losses),
        "rows": reached.examples,
        "rows_digest": reached.digest,
    }


@MODIFICATIONS.register("finetune_alpaca")
class FinetuneAlpaca(StepwiseFineTune):
    """Fine-tuning on general instructions (Alpaca-cleaned)."""

    data = ("alpaca",)
    drift = True
    heading = "Alpaca"


@MODIFICATIONS.register("finetune_math")
class FinetuneMath(StepwiseFineTune):
    """Fine-tuning on mathematical instructions (MathInstruct)."""

    data = ("math",)
    drift = True
    heading = "Math"
