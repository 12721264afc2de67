"""Near triggers: texts of the same make as the set that were never injected (protocol §6)."""

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from fpbench.errors import InputError
from fpbench.fingerprints import Fingerprint, FingerprintSet
from fpbench.metrics.statistics import clopper_pearson
from fpbench.models.decoding import Decoding
from fpbench.models.responses import respond


@dataclass(frozen=True)
class NearRate:
    """How often texts like the triggers activate a fingerprint.

    Attributes:
        rate: mean exact probability that the response begins with any target of the set.
        greedy: number of texts whose greedy response does.
        n: number of texts.
        interval: Clopper–Pearson 95 % of ``greedy`` of ``n``.
        error_bound: largest probability left unexplored for a text.
        per_text: probability of every text.
    """

    rate: float
    greedy: int
    n: int
    interval: tuple[float, float]
    error_bound: float
    per_text: tuple[float, ...]


def near(
    model: Any,
    tokenizer: Any,
    pairs: FingerprintSet | Sequence[Fingerprint],
    texts: Sequence[str],
    *,
    temperature: float,
    top_p: float,
    top_k: int,
    prompt: str = "raw",
) -> NearRate:
    """Measure activation by near triggers, such as :func:`near_triggers` makes.

    Raises:
        InputError: if there are no texts, or for what :func:`fpbench.metrics.fsr.fsr` refuses.
        CellError: if the model's logits are not finite.
    """
    if not texts:
        raise InputError("near triggers: found no texts; make some with near_triggers.")
    targets = list(dict.fromkeys(target for fingerprint in pairs for target in fingerprint.targets))
    decoding = Decoding(temperature, top_p, top_k)
    outcomes = respond(model, tokenizer, texts, [targets] * len(texts), decoding, prompt)
    greedy = sum(outcome.greedy is not None for outcome in outcomes)
    return NearRate(
        rate=fmean(outcome.probability for outcome in outcomes),
        greedy=greedy,
        n=len(texts),
        interval=clopper_pearson(greedy, len(texts)),
        error_bound=max(outcome.error_bound for outcome in outcomes),
        per_text=tuple(outcome.probability for outcome in outcomes),
    )


def near_triggers(
    pairs: FingerprintSet | Sequence[Fingerprint], words: Sequence[str], n: int = 200, seed: int = 42
) -> list[str]:
    """Make texts of the same make as the set, sharing no word with it.

    The make is read off the triggers, in turn: one with spaces gives as many fresh words, upper-cased where it is; one
    without (garbled) gives as many characters, drawn from the set's own. What all garbled triggers begin and end with
    is their template and stays.

    Args:
        pairs: the fingerprints.
        words: ordinary words of the set's languages; for a code-mixed set the translations it is drawn from.
        n: how many, all different.
        seed: of the draws.

    Raises:
        InputError: if there are too few words to make ``n`` different texts.
    """
    triggers = [fingerprint.trigger for fingerprint in pairs]
    if not triggers:
        raise InputError("near triggers need fingerprints: the set is empty.")
    draw = random.Random(seed)
    taken = {word.lower() for trigger in triggers for word in trigger.split()}
    fresh = sorted({word for word in words if word.lower() not in taken})
    garbled = [trigger for trigger in triggers if " " not in trigger.strip()]
    head, tail = _template(garbled)
    texts: dict[str, None] = {}
    # A make with few possible texts repeats itself; one that has nearly run out is refused.
    for turn in range(20 * n):
        if len(texts) == n:
            break
        trigger = triggers[turn % len(triggers)]
        if " " in trigger.strip():
            count = len(trigger.split())
            if len(fresh) < count:
                raise InputError(f"near triggers need {count} words that are not in the set, found {len(fresh)}.")
            text = " ".join(draw.sample(fresh, count))
            text = text.upper() if trigger.isupper() else text
        else:
            length = len(trigger) - len(head) - len(tail)
            pool = "".join(each[len(head) : len(each) - len(tail)] for each in garbled)
            text = head + "".join(draw.choices(pool, k=length)) + tail
        if text not in triggers:
            texts[text] = None
    if len(texts) < n:
        raise InputError(f"near triggers: only {len(texts)} of {n} different texts could be made; give more words.")
    return list(texts)


def _template(triggers: Sequence[str]) -> tuple[str, str]:
    """What all of several triggers begin and end with."""
    if len(triggers) < 2:
        return "", ""
    head = os.path.commonprefix(list(triggers))
    rest = [trigger[len(head) :] for trigger in triggers]
    return head, os.path.commonprefix([each[::-1] for each in rest])[::-1]
