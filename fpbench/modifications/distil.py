"""Distillation of a stolen model into its unfingerprinted base, on natural prompts (FPEraser)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from fpbench.errors import CellError
from fpbench.modifications.base import (
    Dose,
    Modification,
    ModificationConfig,
    ModificationContext,
    Modified,
    changed_from_base,
    require_effect,
)
from fpbench.modifications.finetune import instruction, relative_change
from fpbench.modifications.rows import digest_of, first_rows
from fpbench.registry import MODIFICATIONS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fpbench.models.costs import Counter, Phase, Shape, Work
    from fpbench.models.training import Tokenised

MODULES = ("q_proj", "v_proj")
KEPT = 256  # likeliest tokens of a place whose probabilities a teacher hands on


@dataclass(frozen=True)
class Teacher:
    """Predictions of a teacher after each place of some answers, row by row: its likeliest tokens, and their share.

    What is left is one number, the probability of all other tokens together. The cut cannot teach how that is divided
    among them: a student may move it where it likes. Targets that the teacher makes likely are within the cut.
    """

    tokens: list[Tensor]  # of each row, [places, k], int32
    log_probabilities: list[Tensor]  # of each row, [places, k + 1]; the last is of all others


@MODIFICATIONS.register("distil")
class Distil(Modification):
    """Teaches the base what the stolen model says on natural prompts, and holds it to what it said itself.

    The student is the base with LoRA on q and v. With its distribution q at each place of the answers, the stolen
    model's p and the base's p₀, all at temperature T, it minimises T² KL(q ‖ p) + λ T² KL(q ‖ p₀). Of p and p₀ the 256
    likeliest tokens are cached at each place, and the rest is one outcome more.
    """

    level = "L3"
    trains = True
    against_base = True
    data = ("alpaca",)
    pays = {"data": 1, "parameters": 1}
    dose = Dose("λ, the weight of the base", default=0.5, list=(0, 0.5, 1))
    control = "noise"
    family = "distilled"
    figures = {
        "divergence": lambda value: f"KL {value[0]:.3f} → {value[-1]:.3f}",
        **Modification.figures,
    }

    class Config(ModificationConfig):
        """Settings, those of the source's public code but for full precision and plain answers."""

        rows: int = Field(default=5000, ge=1)  # of natural prompts, from the first
        answer_tokens: int = Field(default=20, ge=1)  # of each answer that are learnt
        epochs: int = Field(default=3, ge=1)  # passes over the rows
        batch_size: int = Field(default=16, ge=1)  # rows a step
        learning_rate: float = Field(default=2e-4, gt=0)  # peak of the schedule
        temperature: float = Field(default=1.0, gt=0)  # T
        rank: int = Field(default=8, ge=1)  # inner width of the update
        alpha: int = Field(default=16, ge=1)  # the update is scaled by alpha / rank

    def apply(self, model: nn.Module, tokenizer: Any, context: ModificationContext) -> Modified:
        """Distil in place: the weights are the base's, and what the student learns.

        What the teachers say is asked once for all λ. The proof's ``divergence`` is KL(q ‖ p), mean over the places of
        the rows: of the base, and of the student.

        Raises:
            InputError: if the base is not known, or is no base of this model; there are too few rows; or LoRA finds no
                module of these names.
            CellError: if the model is its own base, or the training diverges.
        """
        import torch

        from fpbench.models.training import tokenise
        from fpbench.models.weights import weights

        changed = changed_from_base(self.name, model, context.base)
        examples = first_rows(self, context.rows, self.config.rows)
        whole, _, _ = tokenise(model, tokenizer, examples)
        rows = [(ids[: prompt + self.config.answer_tokens], prompt) for ids, prompt in whole]
        before, key = weights(model), (*context.before, self.name)
        if key not in context.kept:
            context.kept[key] = [self._ask(model, rows)]
        teachers: list[Teacher] = context.kept[key]
        with torch.no_grad():
            parameters = dict(model.named_parameters())
            for name, (_, base) in changed.items():
                parameters[name].copy_(base)
        if len(teachers) < 2:
            teachers.append(self._ask(model, rows))
        divergence = [self._divergence(model, rows, teachers[0])]
        losses = self._train(model, rows, teachers, context)
        divergence.append(self._divergence(model, rows, teachers[0]))
        change = relative_change(model, before)
        require_effect(self.name, change)
        proof = {
            "rows": digest_of(examples),
            "rows_used": len(rows),
            "places": sum(len(each) for each in teachers[0].tokens),
            "share_within_the_cut": 1 - _mean([each[:, -1].float().exp() for each in teachers[0].log_probabilities]),
            "losses": losses,
            "divergence": divergence,
            "relative_change": change,
        }
        return Modified(model, proof)

    def _ask(self, model: nn.Module, rows: Sequence[Tokenised]) -> Teacher:
        """Return what a model says after each place of the answers."""
        import torch

        from fpbench.models.training import answer_logits

        tokens: list[Tensor] = []
        shares: list[Tensor] = []
        with torch.no_grad():
            for batch in _batched(rows, self.config.batch_size):
                logits, _ = answer_logits(model, batch)  # (n, V)
                logs = torch.log_softmax(logits / self.config.temperature, dim=-1)
                best = logs.topk(min(KEPT, logs.shape[1] - 1))
                lengths = [len(ids) - prompt for ids, prompt in batch]
                both = coarse(logs, best.indices).cpu().split(lengths)
                tokens += best.indices.int().cpu().split(lengths)
                shares += both
        return Teacher(tokens, shares)

    def _train(
        self, model: nn.Module, rows: Sequence[Tokenised], teachers: Sequence[Teacher], context: ModificationContext
    ) -> list[float]:
        """Train the student and merge it; return the mean objective of each epoch."""
        import math

        import torch

        from fpbench.models.training import CLIP_NORM, LoRAConfig, adapter, answer_logits, schedule_factor

        size, epochs, rate = self.config.batch_size, self.config.epochs, self.config.learning_rate
        config = LoRAConfig(rate, epochs, size, self.config.rank, self.config.alpha, modules=MODULES)
        steps = math.ceil(len(rows) / size) * epochs
        squared, losses = self.config.temperature**2, []
        cuda = range(torch.cuda.device_count())
        with torch.random.fork_rng(devices=cuda), torch.enable_grad():
            torch.manual_seed(context.seed)
            with adapter(model, config) as weights:
                optimiser = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
                schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: schedule_factor(step, steps))
                for epoch in range(1, epochs + 1):
                    total = 0.0
                    order = torch.randperm(len(rows)).tolist()
                    for batch in context.progress(_batched(order, size), f"{self.name}, epoch {epoch} of {epochs}"):
                        optimiser.zero_grad()
                        logits, _ = answer_logits(model, [rows[number] for number in batch])
                        logs = torch.log_softmax(logits / self.config.temperature, dim=-1)
                        stolen, base = (divergence(logs, each, batch) for each in teachers)
                        loss = squared * (stolen + self.amount * base).mean()
                        if not bool(loss.isfinite()):
                            raise CellError(f"{self.name} became non-finite in epoch {epoch}: lower its learning_rate.")
                        loss.backward()
                        torch.nn.utils.clip_grad_norm_(weights, CLIP_NORM)
                        optimiser.step()
                        schedule.step()
                        total += loss.item() * len(batch)
                    losses.append(total / len(rows))
        return losses

    def _divergence(self, model: nn.Module, rows: Sequence[Tokenised], teacher: Teacher) -> float:
        """Return KL(q ‖ p) of a model from a teacher, mean over all places, at the temperature."""
        import torch

        from fpbench.models.training import answer_logits

        found = []
        with torch.no_grad():
            for numbers in _batched(range(len(rows)), self.config.batch_size):
                logits, _ = answer_logits(model, [rows[number] for number in numbers])
                found.append(divergence(torch.log_softmax(logits / self.config.temperature, -1), teacher, numbers))
        return _mean(found)

    def work(self, counter: Counter, rows: Mapping[str, Sequence[dict[str, str]]]) -> Work:
        """Count the training, and reading the rows four times."""
        from fpbench.models.costs import Work

        examples = [instruction(row) for row in rows["alpaca"][: self.config.rows]]
        training = counter.training(examples, self.config.epochs, self.config.batch_size)
        read = 4 * training.trained / self.config.epochs
        return training + Work(passes=4 * training.steps / self.config.epochs, read=read, scored=read)

    def memory(self, shape: Shape) -> Phase:
        """Count the training, the weights from before, and both caches."""
        from fpbench.models.costs import Phase, Room

        cached = 2 * self.config.rows * self.config.answer_tokens * KEPT * 8
        return Phase(self.name, shape.training(self.config.rank, self.config.batch_size), Room(shape.weights + cached))


def coarse(logs: Tensor, tokens: Tensor) -> Tensor:
    """Return the log-probabilities [n, k + 1] of k tokens [n, k] and of all others together, given all logs [n, V]."""
    import torch

    own = logs.gather(1, tokens)
    others = logs.scatter(1, tokens, float("-inf")).logsumexp(dim=-1, keepdim=True)
    return torch.cat([own, others], dim=1)


def divergence(logs: Tensor, teacher: Teacher, rows: Sequence[int]) -> Tensor:
    """Return KL(q ‖ p) [n] over the outcomes that a teacher knows, q from a student's log-probabilities [n, V].

    The n places are those of the answers of some rows, by number, in order.
    """
    import torch

    tokens = torch.cat([teacher.tokens[row] for row in rows]).long().to(logs.device)
    known = torch.cat([teacher.log_probabilities[row] for row in rows]).to(logs.device)
    own = coarse(logs, tokens)
    found: Tensor = (own.exp() * (own - known)).sum(-1)
    return found


def _batched(items: Any, size: int) -> list[Any]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _mean(parts: Sequence[Tensor]) -> float:
    import torch

    return torch.cat([each.flatten() for each in parts]).float().mean().item()
