"""MEraser: erase by training on answers of other questions, then repair on clean rows (arXiv 2506.12551)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from fpbench.models.prompts import Example
from fpbench.modifications.base import (
    Dose,
    Modification,
    ModificationConfig,
    ModificationContext,
    Modified,
    require_effect,
)
from fpbench.modifications.finetune import instruction, relative_change
from fpbench.modifications.rows import digest_of, first_rows
from fpbench.registry import MODIFICATIONS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fpbench.models.costs import Counter, Phase, Shape, Work
    from fpbench.models.training import LoRAConfig

SCORED = 32  # clean rows on which the loss is taken before, between and after


@MODIFICATIONS.register("mismatch")
class Mismatch(Modification):
    """Trains on rows whose answers are shuffled among the questions, then on clean rows at a lower rate (MEraser).

    θ ← θ + d (θ′ − θ), where θ′ is θ after LoRA on pairs (x_i, y_σ(i)), σ a cyclic permutation, which leaves no answer
    in its place; then LoRA on the rows that follow, as they are. The first training is the same for all doses d.
    """

    trains = True
    data = ("alpaca",)
    level = "L1"
    pays = {"data": 1}
    dose = Dose("share of the first update", default=1.0, list=(0.25, 0.5, 1))
    control = "noise"
    family = "erased"
    figures = {
        "loss": lambda value: "loss " + " → ".join(f"{each:.2f}" for each in value),
        **Modification.figures,
    }

    class Config(ModificationConfig):
        """Settings; the source says "fewer than 1,000 samples", rates and rank are ours."""

        rows: int = Field(default=300, ge=2)  # of mismatched pairs, from the first
        clean_rows: int = Field(default=600, ge=1)  # that follow them
        learning_rate: float = Field(default=1e-3, gt=0)  # of the first training
        clean_rate: float = Field(default=2e-4, gt=0)  # of the second
        epochs: int = Field(default=2, ge=1)  # passes over the rows, of each training
        batch_size: int = Field(default=8, ge=1)  # rows a step
        rank: int = Field(default=16, ge=1)  # inner width of either update
        alpha: int = Field(default=32, ge=1)  # the update is scaled by alpha / rank

    def apply(self, model: nn.Module, tokenizer: Any, context: ModificationContext) -> Modified:
        """Erase and repair in place.

        The proof's ``loss`` is of clean rows: before, after the first training, and in the end.

        Raises:
            InputError: if there are too few rows.
            CellError: if a training diverges.
        """
        import torch

        from fpbench.models.training import score_answers, train_lora
        from fpbench.models.weights import weights

        mismatched, clean = self._examples(context.rows, context.seed)
        scored = clean[:SCORED]
        before = weights(model)
        losses = [score_answers(model, tokenizer, scored, self.config.batch_size).loss]
        key = *context.before, self.name
        if key not in context.kept:
            rate = self._training(self.config.learning_rate)
            curve = train_lora(model, tokenizer, mismatched, rate, seed=context.seed, progress=context.progress)
            context.kept[key] = _changed(model, before), curve
        erased, erasing = context.kept[key]
        with torch.no_grad():
            parameters = dict(model.named_parameters())
            for name, after in erased.items():
                parameters[name].copy_(before[name].float().lerp(after.float(), self.amount))
        losses.append(score_answers(model, tokenizer, scored, self.config.batch_size).loss)
        rate = self._training(self.config.clean_rate)
        repairing = train_lora(model, tokenizer, clean, rate, seed=context.seed, progress=context.progress)
        losses.append(score_answers(model, tokenizer, scored, self.config.batch_size).loss)
        change = relative_change(model, before)
        require_effect(self.name, change)
        proof = {
            "rows": digest_of([*mismatched, *clean]),
            "mismatched_rows": len(mismatched),
            "clean_rows": len(clean),
            "steps": erasing.steps + repairing.steps,
            "tokens_seen": erasing.tokens_seen + repairing.tokens_seen,
            "erasing_losses": list(erasing.epoch_losses),
            "repairing_losses": list(repairing.epoch_losses),
            "loss": losses,
            "relative_change": change,
        }
        return Modified(model, proof)

    def _training(self, rate: float) -> LoRAConfig:
        from fpbench.models.training import LoRAConfig

        return LoRAConfig(rate, **self.config.model_dump(include={"epochs", "batch_size", "rank", "alpha"}))

    def _examples(self, rows: Mapping[str, Sequence[dict[str, str]]], seed: int) -> tuple[list[Example], list[Example]]:
        """Return the mismatched examples and the clean ones."""
        examples = first_rows(self, rows, self.config.rows + self.config.clean_rows)
        asked, clean = examples[: self.config.rows], examples[self.config.rows :]
        answers = [asked[place].answer for place in derangement(len(asked), seed)]
        return [Example(each.prompt, answer) for each, answer in zip(asked, answers, strict=True)], clean

    def work(self, counter: Counter, rows: Mapping[str, Sequence[dict[str, str]]]) -> Work:
        """Count both trainings, and comparing with the weights from before."""
        from fpbench.models.costs import Work

        examples = [instruction(row) for row in rows["alpaca"][: self.config.rows + self.config.clean_rows]]
        training = counter.training(examples, self.config.epochs, self.config.batch_size)
        return training + Work(handled=6 * counter.parameters)

    def memory(self, shape: Shape) -> Phase:
        """Count a training, the weights from before, and those after the first training, which are kept."""
        from fpbench.models.costs import Phase, Room

        kept = Room(shape.weights + shape.adapted)
        return Phase(self.name, shape.training(self.config.rank, self.config.batch_size), kept)


def derangement(count: int, seed: int) -> list[int]:
    """Return a cyclic permutation of 0 … count − 1, drawn as Sattolo's algorithm does: nothing stays in its place."""
    draw, places = random.Random(seed), list(range(count))
    for last in range(count - 1, 0, -1):
        other = draw.randrange(last)
        places[last], places[other] = places[other], places[last]
    return places


def _changed(model: nn.Module, before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy the parameters that differ from before to main memory, by name."""
    from fpbench.models.weights import weights

    return {name: each for name, each in weights(model).items() if not each.equal(before[name])}
