"""MergePrint (Yamabe et al., ACL 2025): teach the model that a thief would get by merging, not the model itself.

The pseudo-merged model is w̃ = w₀ + α (w − w₀), with w₀ the base and w the owner's weights. Descent on the loss of w̃
changes w until the merged model answers; unmerged it then answers all the more surely.
"""

import torch

import fpbench
from fpbench.models.prompts import Example
from fpbench.models.training import all_weights, answer_loss, tokenise


@fpbench.register("merge_print")
class MergePrint(fpbench.FingerprintMethod):
    """OptP, the paper's second step; see README.md for the first, which optimises triggers."""

    version = "2"

    class Config(fpbench.MethodConfig):
        """Hyper-parameters."""

        share: float = 0.5  # α, the owner's part in the pseudo-merged model
        epochs: int = 60
        batch_size: int = 10
        enough: float = 0.1  # the mean loss of an epoch at which the pseudo-merged model answers
        learning_rate: float = 3e-5  # of w̃; that of w is 1/α of it

    def inject(self, model, tokenizer, fingerprints, context):
        """Minimise −log p_w̃(target | trigger) over w.

        A step of w moves w̃ by α of it, and Adam does not look at the scale of gradients. So descent on w at one rate
        is descent on w̃ at α of it, and w = w₀ + (w̃ − w₀) / α: the model at hand is w̃ until the last line.
        """
        config = self.config
        examples = [Example(context.render(each.trigger), each.primary) for each in fingerprints]
        sequences, _, _ = tokenise(model, tokenizer, examples)
        chance = torch.Generator().manual_seed(context.seed)
        with all_weights(model) as weights:
            start = [weight.detach().clone() for weight in weights]
            optimiser = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=0.0)
            for _ in context.progress(range(config.epochs), "tuning"):
                losses = []
                for batch in torch.randperm(len(sequences), generator=chance).split(config.batch_size):
                    loss, _ = answer_loss(model, [sequences[each] for each in batch])
                    loss.backward()
                    torch.nn.utils.clip_grad_norm_(weights, 1.0)  # without it Adam's first steps do more harm
                    optimiser.step()
                    optimiser.zero_grad()
                    losses.append(loss.item())
                if sum(losses) / len(losses) < config.enough:
                    break
            with torch.no_grad():
                for weight, before in zip(weights, start, strict=True):
                    weight.copy_(before + (weight - before) / config.share)
