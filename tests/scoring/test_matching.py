"""A reading may be cautious, never wrong: what is settled must stay as it is however the response goes on."""

import random

import pytest
from transformers import AutoTokenizer

from fpbench.errors import InputError
from fpbench.scoring.matching import LenientMatcher, Matcher, Reading
from fpbench.text import lenient

TARGETS = ("Falcon", "Falcons fly", "ハリネズミ", "ハ", "été", "  x".strip(), "New York")


@pytest.fixture(scope="module", params=["stories3M", "stories260K", "noprefix", "micro"])
def tokenizer(request, shared):
    if request.param == "micro":
        return request.getfixturevalue("micro")[1]
    if request.param == "noprefix":
        return AutoTokenizer.from_pretrained(shared / "parity" / "model" / "tokenizer_noprefix")
    return AutoTokenizer.from_pretrained(shared / "models" / request.param)


def final_target(tokenizer, tokens):
    text = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False).lstrip()
    return max((target for target in TARGETS if text.startswith(target)), key=len, default=None)


def test_every_spelling_is_followed_to_its_target(tokenizer):
    matcher = Matcher(tokenizer, TARGETS)
    for target in TARGETS:
        for written in (target, " " + target, "\n\n " + target, "\u3000" + target):
            ids = tokenizer(written + "!", add_special_tokens=False)["input_ids"]
            if final_target(tokenizer, ids) != target:
                continue  # this tokenizer cannot spell it
            settled = [matcher.read(tuple(ids[:end])) for end in range(1, len(ids) + 1)]
            assert all(reading.target == target for reading in settled if reading.settled), written
            assert matcher.read(tuple(ids)).target == target


def test_settled_readings_survive_every_continuation(tokenizer):
    draw = random.Random(0)
    matcher = Matcher(tokenizer, TARGETS)
    spellings = [tokenizer(prefix + target, add_special_tokens=False)["input_ids"] for target in TARGETS
                 for prefix in ("", " ", "\n")]  # fmt: skip
    likely = sorted({token for ids in spellings for token in ids} | set(tokenizer.all_special_ids))
    settled = 0
    for _ in range(1500):
        ids = list(draw.choice(spellings))[: draw.randint(0, 12)]
        ids += [draw.choice(likely) if draw.random() < 0.7 else draw.randrange(len(tokenizer)) for _ in range(6)]
        end = draw.randint(1, len(ids))
        reading = matcher.read(tuple(ids[:end]))
        assert reading.target == final_target(tokenizer, ids[:end])
        if reading.settled:
            settled += 1
            assert final_target(tokenizer, ids) == reading.target, tokenizer.decode(ids)
    assert settled > 200


def test_characters_split_over_tokens_are_followed_and_stray_bytes_given_up(shared):
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories3M")
    matcher = Matcher(tokenizer, ["ハリ"])
    byte = {value: tokenizer.convert_tokens_to_ids(f"<0x{value:02X}>") for value in "ハリ".encode()}
    ids = tuple(byte[value] for value in "ハリ".encode())
    assert not any(matcher.read(ids[:end]).settled for end in range(len(ids)))
    assert matcher.read(ids).target == "ハリ"
    # A stray byte behind it would turn the whole run into U+FFFD, an ordinary token closes it.
    assert not matcher.read(ids).settled
    assert matcher.read((*ids, tokenizer.convert_tokens_to_ids("▁the"))).settled
    broken = matcher.read((*ids, ids[0], tokenizer.convert_tokens_to_ids("▁the")))
    assert broken.target is None and broken.settled
    # 0x83 begins no character: nothing can come of it.
    assert matcher.read((byte[0x83],)).settled
    # 0xE3 begins the target, and the ideographic space as well.
    assert not Matcher(tokenizer, ["Falcon"]).read((byte[0xE3],)).settled


@pytest.mark.parametrize("targets", [[], [" Falcon"], ["Falcon", " "]])
def test_targets_that_nothing_matches_are_refused(stories, targets):
    with pytest.raises(InputError, match="target"):
        Matcher(stories[1], targets)


@pytest.mark.parametrize(
    "written", ["falcon", '"FALCON', "**Falcon", "\u200bFal\u200bcon", "（ｆａｌｃｏｎ", " \n- Falcon"]
)
def test_what_hides_a_match_is_read_through(micro, written):
    tokenizer = micro[1]
    matcher = LenientMatcher(tokenizer, ("Falcon", "..."))
    ids = tuple(tokenizer(written, add_special_tokens=False)["input_ids"])
    readings = [matcher.read(ids[:end]) for end in range(len(ids) + 1)]
    assert all(reading == Reading(None, settled=False) for reading in readings[:-1])
    assert readings[-1] == Reading("Falcon", settled=True)
    assert matcher.read((*ids, *tokenizer("s fly")["input_ids"])).target == "Falcon"


def test_lenient_readings_that_are_settled_survive_every_continuation(tokenizer):
    draw = random.Random(0)
    matcher = LenientMatcher(tokenizer, TARGETS)
    wanted = [lenient(target) for target in TARGETS]
    spellings = [tokenizer(prefix + target.upper(), add_special_tokens=False)["input_ids"] for target in TARGETS
                 for prefix in ("", '"', "*")]  # fmt: skip
    likely = sorted({token for ids in spellings for token in ids} | set(tokenizer.all_special_ids))
    settled = 0
    for _ in range(600):
        ids = list(draw.choice(spellings))[: draw.randint(0, 12)]
        ids += [draw.choice(likely) if draw.random() < 0.8 else draw.randrange(len(tokenizer)) for _ in range(4)]
        reading = matcher.read(tuple(ids[: draw.randint(1, len(ids))]))
        if reading.settled and reading.target is None:
            settled += 1
            assert not lenient(matcher.text([each for each in ids if each not in matcher._special])).startswith(
                tuple(wanted)
            ), tokenizer.decode(ids)
    assert settled > 50
