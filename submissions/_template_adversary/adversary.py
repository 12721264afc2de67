"""A passing example: let no first token be likelier than the runner-up, where the model is too certain of it."""

from fpbench import Adversary
from fpbench.modifications.base import Dose
from fpbench.registry import ADVERSARIES


@ADVERSARIES.register("level_first")
class LevelFirst(Adversary):
    """Brings the likeliest token down to the second, in the first steps, where its probability exceeds 0.9."""

    version = "1"
    level = "L1"  # knows the family of methods and its format, not the keys
    pays = {"inference": 1}
    dose = Dose("steps", default=1, list=(1, 4))

    def sampler(self, prompt, prefix, logits):
        """Return the logits [V] to sample from; they depend on prompt, prefix and logits alone."""
        if len(prefix) >= self.amount or logits.softmax(-1).max() <= 0.9:
            return logits
        return logits.clamp(max=logits.topk(2).values[1])
