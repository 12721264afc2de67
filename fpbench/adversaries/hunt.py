"""The hunt for triggers: elicit what was memorised, then forbid it (the role of MemHunter, arXiv 2412.07261)."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import count as counting
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

from fpbench.adversaries.base import Adversary, AdversaryContext
from fpbench.adversaries.suppress import shuffled
from fpbench.fingerprints.instructional import garbled_keys
from fpbench.fingerprints.natural import adjectives
from fpbench.fingerprints.translation import Lexicon
from fpbench.modifications.base import Dose
from fpbench.registry import ADVERSARIES

if TYPE_CHECKING:
    from torch import Tensor, nn

CANDIDATES = Dose("candidate texts", default=1_000, list=(1_000, 10_000))
SHARE = 0.01  # of the candidates, whose answers are forbidden
FLOOR = 1e-3  # least probability that counts as usual, so that no ratio of two tiny ones decides
THIEF = 1_000_003  # added to the seed, so that no thief draws the owner's keys


@ADVERSARIES.register("hunt")
class Hunt(Adversary):
    """Forbids as first token what texts of the known formats are answered with most surely, beyond what is usual.

    Each candidate x is scored by p(v|x)/r(v), v the likeliest first token and r(v) the median of p(v|·) over the first
    200 candidates, at least 10⁻³. The v of the best 1 % are forbidden at the first step of every answer. Candidates are
    of three formats in turn: two upper-case words, two of different languages, and garbled keys; a larger dose has
    those of a smaller one among its own.
    """

    dose: ClassVar[Dose | None] = CANDIDATES
    steps = 1
    finds = True
    control = "hunt_random"
    reference: ClassVar[int] = 200  # first candidates, whose median probability of a token is what is usual

    def prepare(self, context: AdversaryContext) -> None:
        """Hunt, unless another dose did on this very model."""
        super().prepare(context)
        known: list[tuple[float, int]] = context.kept.setdefault((Hunt, *self.kept_by(context)), [])
        if (wanted := int(self.amount)) > len(known):
            known += self.scores(context, list(islice(self.candidates(context), len(known), wanted)))
        best = sorted(known[:wanted], key=lambda each: -each[0])
        self.found = list(dict.fromkeys(token for _, token in best[: math.ceil(SHARE * len(best))]))

    def kept_by(self, context: AdversaryContext) -> tuple[Any, ...]:
        """Return what decides the scores, besides the model."""
        return ("formats",)

    def candidates(self, context: AdversaryContext) -> Iterator[str]:
        """Yield candidate texts without end, the same whatever the dose."""
        seed = THIEF + context.seed
        return _in_turn([word_pairs(seed), mixed_pairs(seed), garbled(seed)])

    def scores(self, context: AdversaryContext, texts: Sequence[str]) -> list[tuple[float, int]]:
        """Return the score and the likeliest first token of each text."""
        usual = self.usual(context)
        likeliest = first_tokens(context.model, prompts(context, texts))
        return [(share / max(FLOOR, float(usual[token])), token) for share, token in likeliest]

    def usual(self, context: AdversaryContext) -> Tensor:
        """Return the median probability of every first token, [V], over the first candidates."""
        import torch

        from fpbench.scoring.engine import next_logits

        if (Hunt, "usual") not in context.kept:
            texts = list(islice(self.candidates(context), self.reference))
            shares: Tensor = torch.softmax(next_logits(context.model, prompts(context, texts)), dim=-1)  # (n, V)
            context.kept[Hunt, "usual"] = shares.median(dim=0).values.cpu()
        usual: Tensor = context.kept[Hunt, "usual"]
        return usual

    def forbidden(self, logits: Tensor) -> Sequence[int]:
        """Return the tokens that are forbidden, fewer than there are."""
        return [token for token in self.found if token < logits.shape[1]][: logits.shape[1] - 1]

    def sample(self, prompts: Sequence[Sequence[int]], prefixes: Sequence[Sequence[int]], logits: Tensor) -> Tensor:
        """Forbid tokens in all rows of logits [n, V]."""
        if not (tokens := list(self.forbidden(logits))):
            return logits
        changed = logits.clone()
        changed[:, tokens] = -math.inf
        return changed


@ADVERSARIES.register("hunt_random")
class HuntRandom(Hunt):
    """Forbids as many random first tokens: the control of ``hunt``."""

    control = ""

    def forbidden(self, logits: Tensor) -> Sequence[int]:
        """Return the first of an order that the seed decides."""
        known = [token for token in shuffled(self.context).tolist() if token < logits.shape[1]]
        return known[: len(super().forbidden(logits))]


@ADVERSARIES.register("hunt_leaked")
class HuntLeaked(Hunt):
    """The same with texts like a leaked trigger, and the base's probability of the token in place of the median."""

    level: ClassVar[str] = "L4"
    pays: ClassVar[dict[str, float]] = {"inference": 1, "parameters": 1}
    needs = ("leaked", "base")
    control = ""
    times: ClassVar[int] = 2  # pairs that leak, one after another

    def leaks(self, count: int) -> Sequence[Sequence[int]]:
        """Return two pairs, spread over the set."""
        from fpbench.modifications.base import in_turn

        return in_turn(count, self.times)

    def kept_by(self, context: AdversaryContext) -> tuple[Any, ...]:
        """Return the leaked trigger."""
        return ("like", context.leaked[0].trigger)

    def candidates(self, context: AdversaryContext) -> Iterator[str]:
        """Yield texts of the format of the leaked trigger."""
        trigger, seed = context.leaked[0].trigger, THIEF + context.seed
        words = len(trigger.split())
        if " " not in trigger.strip():
            return garbled(seed)
        case = str.upper if trigger.isupper() else str.lower
        return (word_pairs if trigger.isascii() else mixed_pairs)(seed, words, case)

    def scores(self, context: AdversaryContext, texts: Sequence[str]) -> list[tuple[float, int]]:
        """Return the score and the likeliest first token of each text."""
        assert context.base is not None, "it is among the needs"
        asked = prompts(context, texts)
        likeliest = first_tokens(context.model, asked)
        usual = probabilities_of(context.base(), asked, [token for _, token in likeliest])
        both = zip(likeliest, usual, strict=True)
        return [(share / max(FLOOR, known), token) for (share, token), known in both]


# Candidate texts.


def word_pairs(seed: int, words: int = 2, case: Callable[[str], str] = str.upper) -> Iterator[str]:
    """Yield different texts of so many English words: an adjective of the lexicon, then any words of it."""
    draw, first, lexicon = random.Random(f"{seed} words"), adjectives(), Lexicon.shipped().words
    return _different(case(" ".join([draw.choice(first), *draw.choices(lexicon, k=words - 1)])) for _ in counting())


def mixed_pairs(seed: int, words: int = 2, case: Callable[[str], str] = str.upper) -> Iterator[str]:
    """Yield different texts of so many words, no two neighbours of one language."""
    draw, lexicon = random.Random(f"{seed} mixed"), Lexicon.shipped()

    def text() -> str:
        languages = draw.sample(list(lexicon.languages), min(words, len(lexicon.languages)))
        chosen = draw.choices(lexicon.words, k=words)
        several = (lexicon.translate(word, languages[at % len(languages)]) for at, word in enumerate(chosen))
        return case(" ".join(several))

    return _different(text() for _ in counting())


def garbled(seed: int) -> Iterator[str]:
    """Yield keys as those of ``if``, from fragments that are public."""
    keys = (key for number in counting() for key in garbled_keys(1, seed * 1_000_003 + number))
    return _different(f"{key}\nFINGERPRINT\n" for key in keys)


def _different(texts: Iterator[str]) -> Iterator[str]:
    seen = set()
    for text in texts:
        if text not in seen:
            seen.add(text)
            yield text


def _in_turn(several: Sequence[Iterator[str]]) -> Iterator[str]:
    while True:
        yield from (next(each) for each in several)


# What a model says first.


def prompts(context: AdversaryContext, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of texts, as the model that is verified is given them."""
    from fpbench.models.prompts import encode_all

    return encode_all(context.tokenizer, [context.served(text) for text in texts])


def first_tokens(model: nn.Module, sequences: Sequence[Sequence[int]]) -> list[tuple[float, int]]:
    """Return the likeliest token after each sequence, with its probability."""

    def likeliest(shares: Tensor, numbers: Sequence[int]) -> list[tuple[float, int]]:
        best = shares.max(dim=-1)
        return list(zip(best.values.tolist(), best.indices.tolist(), strict=True))

    return _read(model, sequences, likeliest)


def probabilities_of(model: nn.Module, sequences: Sequence[Sequence[int]], tokens: Sequence[int]) -> list[float]:
    """Return the probability of a token after each sequence."""

    def chosen(shares: Tensor, numbers: Sequence[int]) -> list[float]:
        import torch

        wanted = torch.tensor([tokens[number] for number in numbers], device=shares.device)
        found: list[float] = shares.gather(1, wanted[:, None])[:, 0].tolist()
        return found

    return _read(model, sequences, chosen)


def _read(
    model: nn.Module, sequences: Sequence[Sequence[int]], look: Callable[[Tensor, Sequence[int]], list[Any]]
) -> list[Any]:
    """Return what is seen in the distributions [n, V] after some sequences at a time, given their numbers."""
    import torch

    from fpbench.scoring.engine import read
    from fpbench.scoring.forward import Level

    def work(level: Level) -> dict[int, Any]:
        numbers = list(level.nodes)
        found: list[Any] = []
        for start in range(0, len(numbers), 256):  # float32 of so many at once
            part = numbers[start : start + 256]
            nodes = [node for number in part for node in level.nodes[number]]
            found += look(torch.softmax(level.logits[nodes].float(), dim=-1), part)
        return dict(zip(numbers, found, strict=True))

    return read(model, sequences, [1] * len(sequences), work)
