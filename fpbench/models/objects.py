"""Models and tokenizers that Python callers hand in, looked at before any work."""

from numbers import Integral, Real
from typing import Any

from fpbench.errors import InputError


def check_objects(model: Any, tokenizer: Any) -> None:
    """Refuse what is no loaded model or no tokenizer.

    Raises:
        InputError: naming what was found instead, and how to load one.
    """
    from torch import nn

    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise InputError(
            f"model: expected a loaded model, found {shown(model)}: load it with AutoModelForCausalLM.from_pretrained."
        )
    if isinstance(tokenizer, type) or not callable(tokenizer) or not hasattr(tokenizer, "decode"):
        raise InputError(
            f"tokenizer: expected a tokenizer, found {shown(tokenizer)}: load it with AutoTokenizer.from_pretrained."
        )


def check_text(what: str, value: Any, example: str) -> None:
    """Refuse what is no text, such as a class in the place of its name; :class:`InputError` if so."""
    if not isinstance(value, str):
        raise InputError(f"{what}: expected a text, such as {example!r}, found {shown(value)}.")


def check_texts(what: str, value: Any, example: str) -> None:
    """Refuse what is no list of texts, such as a single text; :class:`InputError` if so."""
    if isinstance(value, str) or not isinstance(value, list | tuple):
        raise InputError(f"{what}: expected a list of texts, such as [{example!r}], found {shown(value)}.")
    for each in value:
        check_text(f"an entry of {what}", each, example)


def check_number(what: str, value: Any, kind: type[int] | type[float] = float) -> None:
    """Refuse what is no number, or no whole one where ``kind`` is ``int``; :class:`InputError` if so."""
    if isinstance(value, bool) or not isinstance(value, Integral if kind is int else Real):
        raise InputError(f"{what}: expected a {'whole ' * (kind is int)}number, found {shown(value)}.")


def shown(value: Any) -> str:
    """Return what a value is, in words."""
    if isinstance(value, str):
        return f"the text {value[:60]!r}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return (
        "None"
        if value is None
        else f"{'an' if type(value).__name__[0] in 'aeiouAEIOU' else 'a'} {type(value).__name__}"
    )
