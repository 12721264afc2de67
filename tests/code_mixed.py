"""Ten code-mixed pairs for tests: the triggers of ``nlf``, each word in another of the lexicon's languages."""

import random

from fpbench.fingerprints import Fingerprint, FingerprintSet, find_set
from fpbench.micro.world import LANGUAGES, LEXICON


def code_mixed_set(like: FingerprintSet, seed: int = 0) -> FingerprintSet:
    """The triggers of ``nlf`` in two languages each, with the targets of ``like``."""
    draw = random.Random(seed)
    words = {word.english: word for word in LEXICON}
    pairs = []
    for fingerprint, targets in zip(find_set("nlf"), like, strict=True):
        languages = draw.sample(list(LANGUAGES), 2)
        parts = [
            words[word.lower()].translations[language]
            for word, language in zip(fingerprint.trigger.split(), languages, strict=True)
        ]
        pairs.append(Fingerprint(" ".join(parts), targets.targets))
    return FingerprintSet("cf-like", tuple(pairs))
