"""Tell an answer from its wrapping: thinking, channel markup, marks of turns and an echoed prompt are no part of it."""

import re

# Blocks of thinking, by how they open and close; those of one family differ in their brackets alone.
TAG = r"(?:think|thinking|thought|thoughts|reasoning|reflection|seed:think)"
BLOCKS = tuple(
    (re.compile(opens, re.IGNORECASE), re.compile(closes, re.IGNORECASE))
    for opens, closes in (
        (rf"<{TAG}(?:\s[^>]*)?>", rf"</{TAG}>"),
        (rf"\[{TAG}\]", rf"\[/{TAG}\]"),
        (rf"◁{TAG}▷", rf"◁/{TAG}▷"),
        (r"<\|(?:begin_of_thought|start_thinking)\|>", r"<\|(?:end_of_thought|end_thinking)\|>"),
        (r"<\|channel>thought", r"<channel\|>"),
    )
)
# Channels: everything before the last one is for nobody but the model.
CHANNEL = re.compile(r"<\|channel\|>\s*(\w+).*?<\|message\|>", re.DOTALL)
SPOKEN = re.compile(r"analysis.*?assistantfinal", re.DOTALL)  # the same, where marks of channels are left out
THOUGHT = re.compile(r"analysis(?=[A-Z])")
# Marks of the beginning of a text or turn, with the speaker's name where it follows such a mark.
MARK = re.compile(
    r"<s>|<bos>|\[/?INST\]|<start_of_turn>(?:model)?|<(?:final_)?answer>"
    r"|<\|(?:im_start|start|start_header_id|header_start|role_start)\|>(?:assistant)?|<[|｜][\w▁ ]+[|｜]>"
)


class Unheard(ValueError):
    """The answer proper is not there: what came is thinking, or the prompt, and nothing after it."""


def unwrapped(text: str, prompt: str | None) -> str:
    """Return the answer in what a server returned, leading white space included; ``prompt`` is cut off where echoed.

    Raises:
        Unheard: if thinking is not finished, or nothing follows the prompt.
    """
    rest: str | None = text
    while rest is not None:
        text, rest = rest, _without_first(rest)
        if rest is None and prompt and (echoed := prompt.strip()) and text.lstrip().startswith(echoed):
            rest, prompt = text.lstrip().removeprefix(echoed), None  # once: a model may well repeat itself
            if not rest.strip():
                raise Unheard("the server returned the prompt and nothing after it")
    return text


def _without_first(text: str) -> str | None:
    """Return a text without the first thing around the answer; ``None`` where the answer begins."""
    begun = text.lstrip()
    if channel := CHANNEL.match(begun):
        spoken = [each for each in CHANNEL.finditer(begun) if each[1] == "final"]
        if not spoken and channel[1] != "final":
            raise Unheard(f"the answer ends in the channel {channel[1]!r}, before anything is said")
        return begun[spoken[-1].end() :]
    if begun.startswith("<|channel|>") or (SPOKEN.match(begun) is None and THOUGHT.match(begun)):
        raise Unheard("the answer ends in a channel of thinking, before anything is said")
    if words := SPOKEN.match(begun):
        return begun[words.end() :]
    for opens, closes in BLOCKS:
        opened, closed = opens.match(begun), closes.search(begun)
        if opened and not closed:
            raise Unheard("the answer ends before its thinking does")
        if closed:  # or the prompt has opened it
            return begun[closed.end() :]
    mark = MARK.match(begun)
    return begun[mark.end() :] if mark else None
