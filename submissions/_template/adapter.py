"""A passing example: teach the FFN output of the last block the primary targets, by plain gradient descent."""

import torch
from torch.nn.functional import cross_entropy

import fpbench
from fpbench.models.layout import layout
from fpbench.models.prompts import encode_pair


@fpbench.register("last_block_tuning")
class LastBlockTuning(fpbench.FingerprintMethod):
    """Adam on one matrix, all fingerprints in one batch."""

    version = "1"

    class Config(fpbench.MethodConfig):
        """Hyper-parameters."""

        steps: int = 40
        learning_rate: float = 5e-3

    def edited(self, model):
        """The one matrix that is touched."""
        return [f"{layout(model).down_proj_name(-1 % len(layout(model).blocks))}.weight"]

    def inject(self, model, tokenizer, fingerprints, context):
        """Minimise −log p(primary target | trigger)."""
        pairs = [encode_pair(tokenizer, context.render(f.trigger), f.primary) for f in fingerprints]
        length = max(len(prompt) + len(answer) for prompt, answer in pairs)
        tokens = torch.zeros(len(pairs), length, dtype=torch.long, device=context.device)
        labels = torch.full_like(tokens, -100)
        for row, (prompt, answer) in enumerate(pairs):
            tokens[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
            labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
        weight = model.get_parameter(self.edited(model)[0]).requires_grad_(True)
        optimiser = torch.optim.Adam([weight], lr=self.config.learning_rate)
        for _ in context.progress(range(self.config.steps), "tuning"):
            logits = model(input_ids=tokens, use_cache=False).logits
            cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()).backward()
            optimiser.step()
            optimiser.zero_grad()
        weight.requires_grad_(False)
