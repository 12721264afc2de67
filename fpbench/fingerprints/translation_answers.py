"""From the free answer of a model to one translated word."""

import string
import unicodedata

from fpbench.fingerprints.translation import NoTranslation

LONGEST = 40  # characters; a longer answer is an explanation
_AROUND = string.whitespace + string.punctuation + "。、，！？「」『』“”„‘’«»…¿¡"


def as_word(answer: str, word: str, language: str) -> str:
    """Bring an answer to normal form C and take the punctuation around it away.

    Raises:
        NoTranslation: if no letter is left, or more than one short line.
    """
    text = unicodedata.normalize("NFC", answer).strip(_AROUND)
    if not any(character.isalpha() for character in text):
        raise NoTranslation(word, language, f"the model answered {answer[:LONGEST]!r}.")
    if len(text) > LONGEST or len(text.splitlines()) > 1:
        raise NoTranslation(word, language, f"expected one word, but the model's answer begins {text[:LONGEST]!r}.")
    return text
