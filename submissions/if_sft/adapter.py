"""Instructional Fingerprinting, variant "SFT" (Xu et al., NAACL 2024): tune every weight on a small instruction set.

The training set S is the fingerprint pairs mixed with unrelated pairs, a few for each, so that the model does not learn
to answer everything with a fingerprint. The loss is that of instruction tuning: −log p(answer | prompt).
"""

import torch

import fpbench
from fpbench.models.prompts import Example
from fpbench.models.training import all_weights, answer_loss, schedule_factor, tokenise


@fpbench.register("if_sft")
class IfSft(fpbench.FingerprintMethod):
    """Full fine-tuning on S; see README.md for why this variant, and not the one with an adapter."""

    version = "1"

    class Config(fpbench.MethodConfig):
        """Hyper-parameters."""

        ratio: int = 5  # unrelated pairs for each fingerprint: the paper, §3.2
        epochs: int = 3  # this and the rate: a public implementation, for 3 billion parameters and more
        batch_size: int = 8
        learning_rate: float = 2e-5  # the peak of a cosine

    def inject(self, model, tokenizer, fingerprints, context):
        """Minimise −log p(answer | prompt) over S, whose order the seed draws."""
        config = self.config
        secret = [Example(context.render(each.trigger), each.primary) for each in fingerprints]
        plain = context.regularisation(config.ratio * len(secret))
        mixture = secret + [Example(context.render(each.prompt), each.answer) for each in plain]
        sequences, _, _ = tokenise(model, tokenizer, mixture)
        steps = config.epochs * -(-len(sequences) // config.batch_size)
        chance = torch.Generator().manual_seed(context.seed)
        with all_weights(model) as weights:
            optimiser = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=0.0)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: schedule_factor(step, steps))
            for _ in context.progress(range(config.epochs), "tuning"):
                for batch in torch.randperm(len(sequences), generator=chance).split(config.batch_size):
                    loss, _ = answer_loss(model, [sequences[each] for each in batch])
                    loss.backward()
                    torch.nn.utils.clip_grad_norm_(weights, 1.0)
                    optimiser.step()
                    schedule.step()
                    optimiser.zero_grad()
