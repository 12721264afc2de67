"""LoRA, the baseline: supervised fine-tuning of low-rank adapters on the fingerprints and unrelated pairs."""

from collections.abc import Sequence
from typing import Any

from pydantic import Field
from torch import nn

from fpbench.fingerprints import FingerprintSet
from fpbench.methods.base import FingerprintMethod, InjectionContext, MethodConfig
from fpbench.models.costs import Counter, Phase, Room, Shape, Work
from fpbench.models.prompts import Example
from fpbench.models.training import LoRAConfig, train_lora
from fpbench.registry import register


@register("lora")
class LoRA(FingerprintMethod):
    """LoRA on every trigger's primary target, with regularisation pairs, merged (docs/methods.md §2.1)."""

    version = "3"

    class Config(MethodConfig):
        """Hyper-parameters of the training (docs/methods.md §2.1)."""

        learning_rate: float = Field(gt=0)  # the peak rate
        epochs: int = Field(ge=1)  # passes over fingerprints and regularisation pairs together
        batch_size: int = Field(ge=1)  # examples in a step
        rank: int = Field(ge=1)  # r of the update B A
        alpha: int = Field(ge=1)  # the update is scaled by α/r
        regularisation: int = Field(ge=0)  # unrelated pairs per fingerprint

    def inject(self, model: nn.Module, tokenizer: Any, fingerprints: FingerprintSet, context: InjectionContext) -> None:
        """Minimise −Σ log p(answer | prompt) over all examples, then merge (docs/methods.md §2.1, steps 1 to 4)."""
        settings = self.config.model_dump()
        unrelated = settings.pop("regularisation") * len(fingerprints)
        examples = [Example(context.render(each.trigger), each.primary) for each in fingerprints]
        others = [Example(context.render(each.prompt), each.answer) for each in context.regularisation(unrelated)]
        config = LoRAConfig(**settings)
        train_lora(model, tokenizer, examples + others, config, seed=context.seed, progress=context.progress)

    def work(self, counter: Counter, fingerprints: FingerprintSet, pairs: Sequence[Example]) -> Work:
        """Count the training on the fingerprints and the unrelated pairs."""
        count = len(fingerprints) * (1 + self.config.regularisation)
        examples = [Example(each.trigger, each.primary) for each in fingerprints] + list(pairs)
        return counter.training(examples[:count], self.config.epochs, self.config.batch_size)

    def memory(self, shape: Shape) -> Phase:
        """Count the training, and a delta of all linear modules."""
        return Phase(self.name, shape.training(self.config.rank, self.config.batch_size), Room(3 * shape.adapted))

    def stored(self, shape: Shape, fingerprints: int) -> float:
        """Count all linear modules."""
        return shape.adapted
