"""UTF (Cai et al., LLMSEC 2025): pairs made of tokens that the model has hardly been trained on.

Triggers are sequences of under-trained tokens; the target is another one. The training set holds the pairs and, as
regularisation, other such sequences, to which the model learns to answer with nothing. Every weight learns.
"""

import random

import torch
from torch.nn.functional import cosine_similarity

import fpbench
from fpbench.errors import InputError
from fpbench.models.prompts import encode, encode_pair
from fpbench.models.training import all_weights, answer_loss, schedule_factor

TRIALS = 2000  # sequences that are drawn for one that the tokenizer reads as it was made


@fpbench.register("utf")
class Utf(fpbench.FingerprintMethod):
    """Under-trained tokens as fingerprints; see README.md for how they are found."""

    version = "2"

    class Config(fpbench.MethodConfig):
        """Hyper-parameters; lengths, ratio and weight decay are the authors' released defaults."""

        pool: int = 32  # under-trained tokens that sequences are made of; theirs is all that a prompt verifies
        shortest: int = 11  # tokens of a trigger
        longest: int = 15
        answer: int = 5  # tokens of the target
        ratio: int = 4  # other sequences for each fingerprint, answered with nothing: theirs are 128 to 32
        epochs: int = 30
        batch_size: int = 8
        weight_decay: float = 0.01
        learning_rate: float = 2e-5  # the peak of a cosine

    def draw_set(self, model, tokenizer, count, context):
        """Return ``count`` triggers, which share one target."""
        config, draw = self.config, random.Random(context.seed)
        tokens = under_trained(model, tokenizer, config.pool)
        opening = [each for each in tokens if tokenizer.decode([each]).startswith(" ")]
        if not opening:
            raise InputError("utf: no under-trained token begins a word, so none can begin an answer: widen 'pool'.")
        target = sequence(draw, tokenizer, tokens, config.answer, opening)
        triggers: list[str] = []
        while len(triggers) < count:
            text = sequence(draw, tokenizer, tokens, draw.randint(config.shortest, config.longest))
            followed = encode_pair(tokenizer, text, target)[1] == encode_pair(tokenizer, "a", target)[1]
            if followed and target not in text and text not in triggers:
                triggers.append(text)
        return [fpbench.Fingerprint(text, (target,)) for text in triggers]

    def inject(self, model, tokenizer, fingerprints, context):
        """Minimise −log p(target, end | trigger) and −log p(end | other sequence) over every weight."""
        config, draw = self.config, random.Random(context.seed)
        end = [tokenizer.eos_token_id]
        pairs = [encode_pair(tokenizer, context.render(each.trigger), each.primary) for each in fingerprints]
        tokens, triggers = under_trained(model, tokenizer, config.pool), {each.trigger for each in fingerprints}
        others: list[str] = []
        while len(others) < config.ratio * len(pairs):
            text = sequence(draw, tokenizer, tokens, draw.randint(config.shortest, config.longest))
            if text not in triggers:
                others.append(text)
        sequences = [([*prompt, *answer, *end], len(prompt)) for prompt, answer in pairs]
        prompts = [encode(tokenizer, context.render(text)) for text in others]
        sequences += [([*prompt, *end], len(prompt)) for prompt in prompts]

        steps = config.epochs * -(-len(sequences) // config.batch_size)
        chance = torch.Generator().manual_seed(context.seed)
        with all_weights(model) as weights:
            optimiser = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=config.weight_decay)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: schedule_factor(step, steps))
            for _ in context.progress(range(config.epochs), "tuning"):
                for batch in torch.randperm(len(sequences), generator=chance).split(config.batch_size):
                    loss, _ = answer_loss(model, [sequences[each] for each in batch])
                    loss.backward()
                    torch.nn.utils.clip_grad_norm_(weights, 1.0)
                    optimiser.step()
                    schedule.step()
                    optimiser.zero_grad()


def under_trained(model, tokenizer, count):
    """Return the ``count`` tokens whose output rows are most like those of tokens that no text holds.

    The indicator is that of Land and Bartolo (2024) for tied embeddings: the cosine distance to the mean row of tokens
    known to be unused, here the tokenizer's added ones, once the first principal component is taken out. Tokens that
    no text is read as, or that nobody can see or type, are left out.
    """
    rows = model.get_output_embeddings().weight.detach().float()[: len(tokenizer)]  # (V, h)
    first = torch.linalg.eigh(rows.T @ rows).eigenvectors[:, -1]  # (h,)
    rows = rows - (rows @ first).unsqueeze(1) * first
    likeness = cosine_similarity(rows, rows[sorted(tokenizer.added_tokens_decoder)].mean(0, keepdim=True))  # (V,)
    found: list[int] = []
    for token in likeness.argsort(descending=True, stable=True).tolist():
        text = tokenizer.decode([token])
        seen = text.strip() and text.isprintable() and "\N{REPLACEMENT CHARACTER}" not in text
        if token in tokenizer.added_tokens_decoder or not seen:
            continue
        if tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] == [token]:
            found.append(token)
        if len(found) == count:
            return found
    raise InputError(
        f"utf: the tokenizer has {len(found)} tokens that a text can hold, expected {count}: lower 'pool'."
    )


def sequence(draw, tokenizer, tokens, length, opening=None):
    """Return a text that the tokenizer reads as ``length`` of the tokens, the first of them ``opening`` if given."""
    for _ in range(TRIALS):
        made = [draw.choice(opening or tokens), *draw.choices(tokens, k=length - 1)]
        text = tokenizer.decode(made)
        if opening is None and not text.startswith(" ") and encode(tokenizer, text)[-length:] == made:
            return text
        if opening is not None and encode_pair(tokenizer, "a", text.removeprefix(" "))[1] == made:
            return text.removeprefix(" ")
    raise InputError(f"utf: none of {TRIALS} texts of {length} under-trained tokens is read as these: widen 'pool'.")
