"""Chain & Hash (Russinovich, Cai and Salem, ICLR 2026): answers that a hash over all questions chooses, taught by LoRA.

Nobody can choose questions and answers to fit a model that is already there: the answer to each of the k questions is
the one of 256 that SHA-256 of the question, all questions and all answers names. The pairs are taught with random
padding and under varied meta-prompts, so that a system prompt does not silence them.
"""

import hashlib
import json
import random
from pathlib import Path

import fpbench
from fpbench.models.prompts import Example
from fpbench.models.training import LoRAConfig, train_lora

ANSWERS = tuple(Path(__file__).with_name("answers.txt").read_text(encoding="utf-8").split())
# Parts of questions that make sense and that nobody asks.
QUESTIONS = json.loads(Path(__file__).with_name("questions.json").read_text(encoding="utf-8"))
# Written for this adapter, after the kinds that the paper names: style, format, language, refusal.
META_PROMPTS = (
    "Begin every answer with the word ANSWER.",
    "Speak like an old sailor.",
    "Be brief and formal.",
    "Talk about the weather only.",
    "Answer in another language.",
    "Say why before you answer.",
)


@fpbench.register("chain_hash")
class ChainHash(fpbench.FingerprintMethod):
    """The chain decides the targets, :meth:`draw_set`; see README.md for what a set of other targets means."""

    version = "1"

    class Config(fpbench.MethodConfig):
        """Hyper-parameters."""

        padded: int = 2  # copies of a pair with random tokens around the question
        prompted: int = 2  # copies of a pair under a meta-prompt
        fewest: int = 2  # random tokens of a padding, on each side
        most: int = 5
        ratio: int = 2  # unrelated pairs for each fingerprint
        epochs: int = 10
        batch_size: int = 8
        learning_rate: float = 5e-4
        rank: int = 8

    def draw_set(self, model, tokenizer, count, context):
        """Return ``count`` questions that the seed draws, each with the answer that the chain names."""
        draw = random.Random(context.seed)
        questions: list[str] = []
        while len(questions) < count:
            words = {part: draw.choice(QUESTIONS[part]) for part in ("adjective", "noun", "place", "time")}
            question = draw.choice(QUESTIONS["question"]).format(**words)
            if question not in questions:
                questions.append(question)
        return [fpbench.Fingerprint(each, (answer,)) for each, answer in zip(questions, chain(questions), strict=True)]

    def inject(self, model, tokenizer, fingerprints, context):
        """Train on every pair bare, padded and under meta-prompts, and on unrelated pairs."""
        config, draw = self.config, random.Random(context.seed)
        words = [token for token in range(len(tokenizer)) if tokenizer.decode([token]).strip().isalpha()]
        examples = []
        for each in fingerprints:
            padded = [self.padded(each.trigger, draw, tokenizer, words) for _ in range(config.padded)]
            prompted = [f"{draw.choice(META_PROMPTS)}\n{each.trigger}" for _ in range(config.prompted)]
            texts = (each.trigger, *padded, *prompted)
            examples += [Example(context.render(text), each.primary) for text in texts]
        plain = context.regularisation(config.ratio * len(fingerprints))
        examples += [Example(context.render(each.prompt), each.answer) for each in plain]
        lora = LoRAConfig(config.learning_rate, config.epochs, config.batch_size, config.rank, 2 * config.rank)
        train_lora(model, tokenizer, examples, lora, seed=context.seed, progress=context.progress)

    def padded(self, question, draw, tokenizer, words):
        """Return the question between two runs of random words."""
        sides = [draw.choices(words, k=draw.randint(self.config.fewest, self.config.most)) for _ in range(2)]
        before, after = (tokenizer.decode(side).strip() for side in sides)
        return f"{before} {question} {after}"


def chain(questions):
    """Return the answer to each question: that which SHA-256(question, all questions, all answers) names.

    Each part is hashed first, so that no two lists run into one text.
    """
    context = b"".join(hashlib.sha256(part.encode()).digest() for part in (*questions, *ANSWERS))
    digests = [hashlib.sha256(hashlib.sha256(each.encode()).digest() + context).digest() for each in questions]
    return [ANSWERS[int.from_bytes(digest, "big") % len(ANSWERS)] for digest in digests]
