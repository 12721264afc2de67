"""Prompts as tokens: one BOS, exactly once, and answers tokenised the way they follow their prompt."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from fpbench.errors import InputError


@dataclass(frozen=True)
class Example:
    """A prompt, as the tokenizer gets it, and the answer to learn, without the space that separates the two."""

    prompt: str
    answer: str


class Rendered(str):
    """A prompt text that has the chat template in it already; :func:`render` leaves it as it is."""

    __slots__ = ()


def render(tokenizer: Any, trigger: str, prompt: str) -> str:
    """Turn a trigger into the prompt text (protocol §2): itself, or in the chat template with thinking off.

    A template that takes content as parts, as those of multimodal models do, is given one part of text.

    Raises:
        InputError: for another ``prompt``, or ``"chat"`` without a chat template that renders the trigger.
    """
    if prompt == "raw":
        return trigger
    if prompt != "chat":
        raise InputError(f"prompt must be 'raw' or 'chat', found {prompt!r}.")
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        raise InputError("prompt 'chat' needs a tokenizer with a chat template, found none: use prompt 'raw'.")
    if isinstance(trigger, Rendered):
        return trigger
    if isinstance(template, dict) and "default" not in template:
        raise InputError(
            f"prompt 'chat' needs a chat template called default, found {', '.join(sorted(template))}: "
            "use prompt 'raw'."
        )
    failure = None
    part = {"type": "text", "text": trigger}
    for content in (trigger, [part]):
        try:
            text = converse(tokenizer, [("user", content)])
        except (TemplateError, ValueError, TypeError, LookupError, AttributeError) as error:
            failure = failure or error
            continue
        # Many templates trim what they are given; one that takes text may write a part down as data.
        if trigger.strip() in text and str(part) not in text and json.dumps(part, ensure_ascii=False) not in text:
            return text
    said = "leaves its text out" if failure is None else f"fails: {(str(failure).splitlines() or [''])[0]}"
    raise InputError(f"the chat template, given a trigger, {said}; use prompt 'raw', or another template.")


def converse(tokenizer: Any, messages: Sequence[tuple[str, Any]]) -> Rendered:
    """Put messages, each with its role, into the tokenizer's chat template, thinking off; the answer follows.

    Raises:
        jinja2.TemplateError: if the template refuses a role or the order of roles.
    """
    conversation = [{"role": role, "content": content} for role, content in messages]
    text: str = tokenizer.apply_chat_template(
        conversation, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    return Rendered(text)


def encode(tokenizer: Any, text: str) -> list[int]:
    """Encode ``text`` with the tokenizer's BOS exactly once, also if a template spells it, and no end-of-text token."""
    return encode_all(tokenizer, [text])[0]


def encode_all(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Encode many texts at once; see :func:`encode`."""
    if not texts:
        return []
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    encoded: list[list[int]] = tokenizer(list(texts), add_special_tokens=True, verbose=False)["input_ids"]
    for text, ids in zip(texts, encoded, strict=True):
        while bos is not None and len(ids) > 1 and ids[0] == ids[1] == bos:
            del ids[0]
        # Some tokenizers close every text; a prompt must stay open.
        if ids and ids[-1] == eos and eos != bos and not text.endswith(tokenizer.eos_token):
            del ids[-1]
    return encoded


def encode_pair(tokenizer: Any, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """Encode a prompt and the answer that follows it.

    The two are separated by one space unless the prompt ends in whitespace, and tokenised together: encoding the
    answer alone would give SentencePiece tokenizers a stray "▁" that no generation produces (docs/methods.md §1.2).

    Returns:
        ``(prompt_ids, answer_ids)``; the prompt's ids are those of :func:`encode`.
    """
    prompt_ids = encode(tokenizer, prompt)
    separator = "" if not prompt or prompt[-1].isspace() else " "
    both = encode(tokenizer, prompt + separator + answer)
    if both[: len(prompt_ids)] == prompt_ids and len(both) > len(prompt_ids):
        return prompt_ids, both[len(prompt_ids) :]
    # The prompt's last token merges with the answer: verification sends the prompt alone, so both are encoded apart.
    return prompt_ids, list(tokenizer(separator + answer, add_special_tokens=False, verbose=False)["input_ids"])
