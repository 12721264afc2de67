"""Instructional Fingerprinting, variant "emb" (Xu et al., NAACL 2024): tune the input embedding, freeze the rest.

The training set S is the fingerprint pairs mixed with unrelated pairs, a few for each, so that the model does not learn
to answer everything with a fingerprint. The loss is that of instruction tuning: −log p(answer | prompt).
"""

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

import fpbench
from fpbench.models.prompts import encode, encode_pair


@fpbench.register("if_embedding")
class IfEmbedding(fpbench.FingerprintMethod):
    """Only the embedding rows of the triggers' tokens learn; see README.md for what tied embeddings mean here."""

    version = "1"

    class Config(fpbench.MethodConfig):
        """Hyper-parameters: five plain pairs for each fingerprint as in the paper; the rest depends on the model."""

        ratio: int = 5
        epochs: int = 20
        batch_size: int = 12
        learning_rate: float = 1e-2

    def edited(self, model):
        """The input embedding, by whatever name the model knows it."""
        table = model.get_input_embeddings().weight
        return [name for name, weight in model.named_parameters() if weight is table]

    def inject(self, model, tokenizer, fingerprints, context):
        """Train on S, with the gradient of every other token's row at zero (Adam without decay leaves these alone)."""
        pairs = [encode_pair(tokenizer, context.render(each.trigger), each.primary) for each in fingerprints]
        plain = context.regularisation(self.config.ratio * len(pairs))
        mixture = pairs + [encode_pair(tokenizer, context.render(each.prompt), each.answer) for each in plain]
        secret = {token for prompt, _ in pairs for token in prompt} - set(encode(tokenizer, context.render("")))

        weight = model.get_input_embeddings().weight.requires_grad_(True)
        learns = torch.zeros(len(weight), 1, dtype=weight.dtype, device=weight.device)
        learns[sorted(secret)] = 1
        optimiser = torch.optim.Adam([weight], lr=self.config.learning_rate)
        chance = torch.Generator().manual_seed(context.seed)
        for _ in context.progress(range(self.config.epochs), "tuning"):
            for batch in torch.randperm(len(mixture), generator=chance).split(self.config.batch_size):
                self.loss(model, [mixture[each] for each in batch], context.device).backward()
                weight.grad.mul_(learns)
                optimiser.step()
                model.zero_grad()
        weight.requires_grad_(False)

    def loss(self, model, batch, device):
        """Mean of −log p(answer | prompt) over the answers' tokens."""
        rows = [torch.tensor(prompt + answer) for prompt, answer in batch]
        answers = [torch.tensor([-100] * len(prompt) + answer) for prompt, answer in batch]
        tokens, labels = pad_sequence(rows, True), pad_sequence(answers, True, -100)
        logits = model(input_ids=tokens.to(device), use_cache=False).logits[:, :-1]
        return cross_entropy(logits.flatten(0, 1).float(), labels[:, 1:].flatten().to(device))
