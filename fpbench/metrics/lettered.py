"""Lettered ARC-Challenge, as lm-eval's ``arc_challenge_chat`` has it: the model names the letter of the right answer.

Beside the tasks that are scored by the likelihood of whole answers (protocol §5). lm-eval has up to 100 tokens
generated greedily, and holds what comes before a full stop or a blank line against the letter, without case and
punctuation. Here generation ends as soon as it is decided, and prompts are read in batches; the verdicts are the same.
"""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fpbench.errors import InputError

if TYPE_CHECKING:
    from fpbench.scoring.forward import Level

TASK, OF = "arc_challenge_chat", "arc_challenge"  # what it is called, and the source of its rows
LETTERS = "ABCD"
LONGEST = 100  # tokens of an answer
STOPS = ("\n\n", ".")
UNDECODED = "\ufffd"  # stands for bytes that are no character yet
PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Question:
    """A question with its choices, as the model is asked; the letter of the right one; and how many there are."""

    prompt: str
    letter: str
    choices: int


def questions(source: str, limit: int | None = None) -> list[Question]:
    """Read the first questions of a source of ARC rows.

    Raises:
        InputError: for a row without three or four choices, or without an answer.
    """
    from fpbench.data import read_rows, require_fields  # and with it the hub's client, before options are read

    found = []
    for number, row in enumerate(
        require_fields(read_rows(source)[:limit], ["question", "choices", "answerKey"], source)
    ):
        try:
            found.append(_question(row))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"data source {source!r}, row {number + 1}: expected a question with choices and an answer, found "
                f"{error!r}; correct the row."
            ) from None
    return found


def _question(row: Mapping[str, Any]) -> Question:
    texts, key = row["choices"]["text"], str(row["answerKey"])
    shown = list(zip(LETTERS, texts, strict=False))  # of five choices the last is left out, as there
    lines = [f"{letter}. {text}" for letter, text in shown]
    letter = LETTERS[int(key) - 1] if key in ("1", "2", "3", "4") else key
    prompt = "\n".join(
        [
            "Given the following question and four candidate answers (A, B, C and D), choose the best answer.",
            f"Question: {row['question'].strip()}",
            *lines,
            'Your response should end with "The best answer is [the_answer_letter]" where the [the_answer_letter] is '
            "one of A, B, C or D. The best answer is",
        ]
    )
    return Question(prompt, letter, len(shown))


def lettered(model: Any, tokenizer: Any, asked: Sequence[Question], window: int) -> tuple[list[bool], int]:
    """Tell for each question whether the greedy answer is its letter, and how many prompts lost their beginning.

    Args:
        model: a causal language model in eval mode.
        tokenizer: its own; prompts have its BOS.
        asked: questions.
        window: tokens of prompt and answer at most; a longer prompt loses its beginning.

    Raises:
        CellError: if logits are not finite.
    """
    from fpbench.models.prompts import encode_all
    from fpbench.scoring.engine import read
    from fpbench.scoring.responses import end_tokens

    room, ends = max(1, window - LONGEST), end_tokens(model, tokenizer)
    encoded = encode_all(tokenizer, [each.prompt for each in asked])

    def decided(number: int, tokens: tuple[int, ...]) -> bool | None:
        ended = tokens[-1] in ends
        text: str = tokenizer.decode(list(tokens[:-1] if ended else tokens), skip_special_tokens=True)
        return verdict(text, asked[number].letter, ended or len(tokens) == LONGEST)

    def work(level: "Level") -> dict[int, bool]:
        found: dict[int, bool] = {}
        pending = [(number, (), node) for number, (node,) in level.nodes.items()]
        _answer(level, pending, decided, found)
        return found

    prompts = [ids[-room:] for ids in encoded]
    ahead = min(LONGEST, window - 1)
    return read(model, prompts, [1] * len(prompts), work, ahead=ahead), sum(len(ids) > room for ids in encoded)


def _answer(level: "Level", pending: Any, decided: Any, found: dict[int, bool]) -> None:
    """Take the likeliest token after each node of ``pending`` (question, answer so far, node); go on where need be."""
    best = level.logits[[node for _, _, node in pending]].argmax(dim=-1).tolist()
    going = []
    for (number, before, node), token in zip(pending, best, strict=True):
        tokens = (*before, token)
        if (right := decided(number, tokens)) is None:
            going.append((number, tokens, node))
        else:
            found[number] = right
    if going:
        for part, deeper in level.extend([node for _, _, node in going], [tokens[-1] for _, tokens, _ in going]):
            _answer(deeper, [(*going[each][:2], at) for at, each in enumerate(part)], decided, found)


def verdict(text: str, letter: str, ended: bool) -> bool | None:
    """Tell whether a response is the letter; ``None`` while more tokens may decide it."""
    cut = min((place for stop in STOPS if (place := text.find(stop)) >= 0), default=None)
    if cut is not None:
        text, ended = text[:cut], True
    said = text.strip().lower() if ended else text.rstrip(UNDECODED).strip().lower()
    plain = said.translate(PUNCTUATION)
    if ended:
        return plain == letter.lower()
    return None if plain in ("", letter.lower()) else False
