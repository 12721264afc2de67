"""Fine-tuning by a user: LoRA on instruction data, merged (protocol §4).

The learning rate is the largest stable one on the unfingerprinted base, found by a search; it has no default here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from fpbench.errors import InputError
from fpbench.models.prompts import Example
from fpbench.modifications.base import (
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
    from fpbench.models.training import LoRAConfig, Penalty

ROWS = 6000  # protocol §4
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
        self, model: nn.Module, tokenizer: Any, context: ModificationContext, penalty: Penalty | None = None
    ) -> Modified:
        """Train in place, minimising ``penalty`` besides the loss."""
        from fpbench.models.training import train_lora
        from fpbench.models.weights import weights

        if self.searches:
            raise InputError(
                f"condition {self.name!r} is to search for its learning rate, which only a run on the unfingerprinted "
                "base can: give a number."
            )
        examples, settings = self.examples(context), self.settings(self.config.learning_rate)
        before = weights(model)
        curve = train_lora(
            model, tokenizer, examples, settings, seed=context.seed, progress=context.progress, penalty=penalty
        )
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


@MODIFICATIONS.register("finetune_alpaca")
class FinetuneAlpaca(FineTune):
    """Fine-tuning on general instructions (Alpaca-cleaned)."""

    data = ("alpaca",)
    drift = True
    heading = "Alpaca"


@MODIFICATIONS.register("finetune_math")
class FinetuneMath(FineTune):
    """Fine-tuning on mathematical instructions (MathInstruct)."""

    data = ("math",)
    drift = True
    heading = "Math"
