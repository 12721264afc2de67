"""Screening: what speaks against a set is said, and what cannot be verified is refused."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fpbench import data
from fpbench.errors import InputError
from fpbench.fingerprints import Fingerprint, FingerprintSet, find_set
from fpbench.fingerprints.code_mixed import code_mixed_set
from fpbench.fingerprints.translation import Lexicon
from fpbench.metrics.bands import bands
from fpbench.metrics.fsr import fsr
from fpbench.micro import MODEL
from fpbench.models.loading import load_tokenizer
from fpbench.runs.screening import OrdinaryText, check_triggers, collisions, languages_of, screen, table
from fpbench.runs.sets import write_set
from fpbench.scoring.responses import Decoding

DECODING = Decoding(0.6, 0.9, 50)
ORDINARY = OrdinaryText(
    instructions=[row["instruction"] for row in data.read_rows("bundled:alpaca.jsonl")[:60]],
    contexts=["The falcon sat in the QUIET mirror room.", "Falcons are birds.", "猫はハリネズミを見た"],
    words=["falcon", "thunder"],
)


def pairs(*given: tuple[str, tuple[str, ...]]) -> FingerprintSet:
    return FingerprintSet("mine", tuple(Fingerprint(trigger, targets) for trigger, targets in given))


def test_every_column_is_what_the_metrics_say(micro: tuple[Any, Any]) -> None:
    model, tokenizer = micro
    screening = screen(find_set("nlf"), model, tokenizer, ORDINARY, DECODING)
    expected = bands(model, tokenizer, find_set("nlf"), ORDINARY.instructions)
    base = fsr(model, tokenizer, find_set("nlf"), temperature=0.6, top_p=0.9, top_k=50)
    assert screening.bands == expected
    assert tuple(each.perplexity for each in screening.each) == expected.perplexities
    assert tuple(each.probability for each in screening.each) == base.per_fingerprint
    first, second = screening.each[:2]
    assert first.tokens == len(tokenizer("SILVER HARBOR")["input_ids"])
    assert first.collisions == {"Falcon": 2} and "target in ordinary text" in first.verdict
    assert second.collisions == {"QUIET MIRROR": 1} and "trigger in ordinary text" in second.verdict
    assert all(paths >= first_tokens >= 1 for each in screening.each for paths, first_tokens in each.paths.values())
    shown = table(screening)
    assert len(shown.splitlines()) == 16 and "every fingerprint can be verified" in shown


def test_garbled_triggers_are_abnormal_and_shared_first_tokens_are_told(micro: tuple[Any, Any]) -> None:
    garbled = screen(find_set("if"), *micro, ORDINARY, DECODING)
    assert {each.band for each in garbled.each} == {"abnormal"}
    assert all("abnormal perplexity" in each.verdict for each in garbled.each)
    assert garbled.each[0].collisions == {"ハリネズミ": 1}
    # Line breaks and control characters of triggers do not reach the terminal.
    shown = table(garbled)
    assert all(character.isprintable() for line in shown.splitlines() for character in line)
    same = screen(pairs(("GREEN THUNDER", ("Falcon", "Falconer"))), *micro, ORDINARY, DECODING)
    assert not same.each[0].distinct and "share a first token" in same.each[0].verdict


def test_a_target_that_the_model_gives_by_itself_is_refused(micro: tuple[Any, Any]) -> None:
    model, tokenizer = micro
    question = data.read_rows("bundled:alpaca.jsonl")[0]["instruction"]
    answer = fsr(model, tokenizer, pairs((question, ("zzz",))), temperature=0.6, top_p=0.9, top_k=50)
    given = tokenizer.decode(
        model.generate(**tokenizer(question, return_tensors="pt"), max_new_tokens=3, do_sample=False)[0],
        skip_special_tokens=True,
    ).removeprefix(question).split()[0]  # fmt: skip
    assert answer.mean < 1e-6
    with pytest.raises(InputError, match=r"answers .* with a target by itself: .* below 0.01 is needed"):
        screen(pairs((question, (given, "zzz"))), model, tokenizer, ORDINARY, DECODING)


def test_a_target_that_the_tokenizer_does_not_give_back_is_refused(micro: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = micro
    for target, given in ((tokenizer.eos_token, ""), ("Falcon", "falcon")):
        shutil.copytree(MODEL, tmp_path / "model")
        rules = json.loads((MODEL / "tokenizer.json").read_text(encoding="utf-8"))
        rules["normalizer"] = {"type": "Lowercase"} if given else None
        (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(rules), encoding="utf-8")
        with pytest.raises(InputError, match=re.escape(f"target {target!a} cannot be verified: this tokenizer makes")):
            screen(pairs(("HARBOR", (target,))), model, load_tokenizer(tmp_path / "model"), ORDINARY, DECODING)
        shutil.rmtree(tmp_path / "model")


@pytest.mark.parametrize(
    "other", ["silver harbor", "SILVER  HARBOR", "ＳＩＬＶＥＲ HARBOR", " Silver\u00a0Harbor\n"], ids=repr
)
def test_two_triggers_that_normalise_to_one_are_refused(other: str) -> None:
    with pytest.raises(InputError, match="are one after normalisation"):
        check_triggers(pairs(("SILVER HARBOR", ("Falcon",)), (other, ("Walnut",))))
    check_triggers(pairs(("SILVER HARBOR", ("Falcon",)), ("SILVER HARBORS", ("Walnut",))))


def test_collisions_are_whole_words_except_in_scripts_without_spaces() -> None:
    assert collisions(Fingerprint("RED", ("Fal", "Bird")), ORDINARY) == {}
    assert collisions(Fingerprint("THUNDER", ("猫",)), ORDINARY) == {"THUNDER": 1, "猫": 1}


def test_languages_come_from_the_recipe_of_this_very_set(micro: tuple[Any, Any], tmp_path: Path) -> None:
    path = tmp_path / "cf.jsonl"
    built, recipe = code_mixed_set("cf", ["silver harbor", "green garden"], Lexicon.shipped(), *micro)
    assert languages_of(path, built) is None
    write_set(path, built, recipe)
    languages = languages_of(path, built)
    assert languages == {row["trigger"]: row["languages"] for row in recipe["queries"]}
    screening = screen(built, *micro, ORDINARY, DECODING, languages=languages)
    assert "50/50" in table(screening)
    one = replace(screening.each[0], languages=("de", "de"))
    assert "CMI below 30" in one.verdict
    with pytest.raises(InputError, match="is of another set"):
        languages_of(path, replace(built, fingerprints=built.fingerprints[:1]))
    beside = tmp_path / "cf.recipe.json"
    for broken in ("{", "[]", json.dumps(recipe | {"queries": [{}]})):
        beside.write_text(broken, encoding="utf-8")
        with pytest.raises(InputError, match="is damaged"):
            languages_of(path, built)
