"""A supervised pair, the one thing that every kind of training here consumes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """One prompt and the answer to learn.

    Attributes:
        prompt: the text before the answer, as it is fed to the tokenizer.
        answer: the text to learn, without the space that separates it from the prompt.
    """

    prompt: str
    answer: str
