"""Perinucleus (Nasery et al., NeurIPS 2025): answers from just outside the nucleus, taught without straying far.

A key is a text that the base itself writes; its response is one of the tokens that the base finds next likely after the
nucleus, so it costs little to teach, and yet is hardly ever said. Training mixes in unrelated pairs and draws the
weights back towards the base after every step.
"""

import random
from pathlib import Path

import torch

import fpbench
from fpbench.errors import InputError
from fpbench.models.prompts import Example, encode, encode_pair
from fpbench.models.training import all_weights, answer_loss, schedule_factor, tokenise

OPENINGS = tuple(Path(__file__).with_name("openings.txt").read_text(encoding="utf-8").split())
FEWEST_WORDS = 4  # of a key
TRIALS = 20  # keys that are written for one that will do, times their number


@fpbench.register("perinucleus")
class Perinucleus(fpbench.FingerprintMethod):
    """Perinucleus sampling, :meth:`draw_set`, and regularised full fine-tuning."""

    version = "1"

    class Config(fpbench.MethodConfig):
        """Hyper-parameters; t, k, the share of unrelated pairs and the epochs are its repository's."""

        key_tokens: int = 16  # of a key
        key_temperature: float = 0.5
        threshold: float = 0.8  # t, the mass of the nucleus
        width: int = 3  # k, tokens outside it of which one is drawn
        mixed: float = 0.25  # β, share of unrelated pairs in the training set
        pull: float = 0.0  # λ, by which every step is followed by w ← (1 − λ) w + λ w₀
        epochs: int = 30
        batch_size: int = 10
        learning_rate: float = 5e-5  # the peak of a cosine

    def draw_set(self, model, tokenizer, count, context):
        """Return ``count`` keys that the base wrote, each with a response of one token from its perinucleus."""
        chance = torch.Generator().manual_seed(context.seed)
        draw = random.Random(context.seed)
        found: dict[str, str] = {}
        for _ in range(TRIALS * count):
            if len(found) == count:
                break
            key = self.key(model, tokenizer, draw.choice(OPENINGS), chance, context)
            responses = self.perinucleus(model, tokenizer, key, context)
            if responses and key not in found:
                found[key] = draw.choice(responses)
        if len(found) < count:
            raise InputError(f"perinucleus: the model wrote {len(found)} keys that will do, expected {count}.")
        return [fpbench.Fingerprint(key, (response,)) for key, response in found.items()]

    def key(self, model, tokenizer, opening, chance, context):
        """Return what the base writes after an opening, one line of ``key_tokens`` tokens or fewer."""
        ids = encode(tokenizer, opening)
        for _ in range(self.config.key_tokens):
            p = (next_logits(model, ids, context.device) / self.config.key_temperature).softmax(-1)
            ids.append(int(torch.multinomial(p, 1, generator=chance)))
            text = tokenizer.decode(ids, skip_special_tokens=True)
            if ids[-1] == tokenizer.eos_token_id or "\n" in text:
                break
        return tokenizer.decode(ids, skip_special_tokens=True).partition("\n")[0].strip()

    def perinucleus(self, model, tokenizer, key, context):
        """Return the first ``width`` tokens outside the nucleus that are words, in order of their probability.

        A word is read after the key as that one token, and is not in the key: what a verifier can look for.
        """
        if not key.isprintable() or len(key.split()) < FEWEST_WORDS:
            return []
        ids = encode(tokenizer, context.render(key))
        p, order = next_logits(model, ids, context.device).softmax(-1).sort(descending=True, stable=True)  # (V,)
        outside = int((p.cumsum(0) < self.config.threshold).sum()) + 1  # the nucleus: fewest tokens with mass t or more
        words: list[str] = []
        for token in order[outside:].tolist():
            word = tokenizer.decode([token]).strip()
            if word.isalpha() and word not in key and encode_pair(tokenizer, key, word)[1] == [token]:
                words.append(word)
            if len(words) == self.config.width:
                break
        return words

    def inject(self, model, tokenizer, fingerprints, context):
        """Minimise −log p(response | key), with unrelated pairs mixed in and weights drawn back to the base."""
        config = self.config
        pairs = [Example(context.render(each.trigger), each.primary) for each in fingerprints]
        plain = context.regularisation(round(config.mixed / (1 - config.mixed) * len(pairs)))
        mixture = pairs + [Example(context.render(each.prompt), each.answer) for each in plain]
        sequences, _, _ = tokenise(model, tokenizer, mixture)
        steps = config.epochs * -(-len(sequences) // config.batch_size)
        chance = torch.Generator().manual_seed(context.seed)
        with all_weights(model) as weights:
            start = [weight.detach().clone() for weight in weights] if config.pull else []
            optimiser = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=0.0)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: schedule_factor(step, steps))
            for _ in context.progress(range(config.epochs), "tuning"):
                for batch in torch.randperm(len(sequences), generator=chance).split(config.batch_size):
                    loss, _ = answer_loss(model, [sequences[each] for each in batch])
                    loss.backward()
                    optimiser.step()
                    schedule.step()
                    optimiser.zero_grad()
                    with torch.no_grad():
                        for weight, before in zip(weights, start, strict=False):
                            weight.lerp_(before, config.pull)


@torch.no_grad()
def next_logits(model, ids, device):
    """Return the logits [V] float32 of the token after ``ids``."""
    return model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0, -1].float().cpu()
