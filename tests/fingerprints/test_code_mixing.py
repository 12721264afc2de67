"""The code-mixing index by hand, the variants of a query, and the choice among them."""

import copy
import json
from collections.abc import Mapping
from typing import Any

import pytest

from fpbench.errors import InputError
from fpbench.fingerprints.code_mixed import (
    MixedText,
    cmi_v1,
    cmi_v2,
    code_mixed_set,
    draw_queries,
    normal_form,
    translations,
    variants,
)
from fpbench.fingerprints.natural import first_token
from fpbench.fingerprints.translation import Lexicon
from fpbench.scoring.perplexity import text_perplexities

FIVE = ("de", "es", "fr", "ja", "zh")
WORDS = {
    "silver": ("Silber", "plata", "argent", "銀", "银"),
    "harbor": ("Hafen", "puerto", "port", "港", "港口"),
    "quiet": ("ruhig", "tranquilo", "calme", "静か", "安静"),
    "mirror": ("Spiegel", "espejo", "miroir", "鏡", "镜子"),
    "thunder": ("Donner", "trueno", "tonnerre", "雷", "雷"),
    "green": ("grün", "verde", "vert", "緑", "绿色"),
    "street": ("Straße", "calle", "rue", "通り", "街"),
}


def lexicon(words: Mapping[str, Mapping[str, str]]) -> Lexicon:
    """A lexicon of a few words."""
    languages = list(next(iter(words.values())))
    return Lexicon("of the test", languages, {word: [each[code] for code in languages] for word, each in words.items()})


TINY_WORDS = {word: dict(zip(FIVE, each, strict=True)) for word, each in WORDS.items()}
TINY = lexicon(TINY_WORDS)


def mixed(query: str, languages: tuple[str, ...] = FIVE, translator: Any = TINY) -> list[MixedText]:
    return variants(query, translations([query], translator, languages))


def texts(query: str, languages: tuple[str, ...] = FIVE, translator: Any = TINY) -> list[str]:
    return [each.text for each in mixed(query, languages, translator)]


@pytest.mark.parametrize(
    ("languages", "first", "second"),
    [
        # Worked out on paper. Version 2: (N − max + P) / 2N.
        ("", 0, 0),
        ("a", 0, 0),
        ("aa", 0, 0),
        ("ab", 50, 50),  # (2 − 1 + 1) / 4
        ("aabb", 50, 37.5),  # (4 − 2 + 1) / 8
        ("abab", 50, 62.5),  # (4 − 2 + 3) / 8
        ("aaab", 25, 25),  # (4 − 3 + 1) / 8
        ("abcd", 75, 75),  # (4 − 1 + 3) / 8
        ("aaabb", 40, 30),  # (5 − 3 + 1) / 10
        ("aaaab", 20, 20),  # (5 − 4 + 1) / 10
        ("-", 0, 0),
        ("a-b", 50, 50),  # the middle word counts nowhere
        ("a--a", 0, 0),
        ("ab-b", 100 / 3, 100 / 3),  # (3 − 2 + 1) / 6
    ],
)
def test_the_index_by_hand(languages: str, first: float, second: float) -> None:
    tags = [None if tag == "-" else tag for tag in languages]
    assert cmi_v1(tags) == pytest.approx(first)
    assert cmi_v2(tags) == pytest.approx(second)


def test_a_two_word_query_has_25_variants_of_which_20_are_mixed() -> None:
    every = mixed("SILVER harbor")
    assert len(every) == 25
    assert len([each for each in every if each.cmi >= 30]) == 20
    assert {each.cmi for each in every} == {0.0, 50.0}
    assert every[1].text == "SILBER PUERTO" and every[1].languages == ("de", "es")
    assert "銀 港口" in [each.text for each in every]


def test_a_text_that_one_language_could_have_written_is_not_mixed() -> None:
    every = {each.text: each for each in mixed("green thunder")}
    # 雷 is Japanese as well as Chinese: 緑 雷 is not mixed.
    assert every["緑 雷"].cmi == every["绿色 雷"].cmi == 0
    assert len(every) == 20
    assert every["GRÜN 雷"].cmi == 50


@pytest.mark.parametrize(("words", "valid"), [(2, 20), (4, 5**4 - 5 - 4 * 5 * 4), (5, 5**5 - 5 - 5 * 5 * 4)])
def test_how_many_variants_of_2_4_and_5_words_are_mixed_enough(words: int, valid: int) -> None:
    plain = lexicon({f"w{n}": {language: f"{language}{n}" for language in FIVE} for n in range(words)})
    query = " ".join(plain.words)
    every = mixed(query, FIVE, plain)
    assert len(every) == 5**words
    # One language, or all words but one in one language (3 + 1 gives 25, 4 + 1 gives 20).
    assert len([each for each in every if each.cmi >= 30]) == valid


def test_a_translation_of_several_words_counts_as_several() -> None:
    two = lexicon({"horseshoe": {"fr": "fer à cheval", "de": "Hufeisen"}, "red": {"fr": "rouge", "de": "rot"}})
    every = {each.text: each for each in mixed("horseshoe red", ("fr", "de"), two)}
    assert every["FER À CHEVAL ROT"].languages == ("fr", "fr", "fr", "de")
    assert every["FER À CHEVAL ROT"].cmi == 25


def test_right_to_left_scripts_combining_characters_and_sharp_s() -> None:
    words = {
        "silver": {"ar": "فضة", "he": "כסף", "hi": "चाँदी", "vi": "bạc", "de": "Silber"},
        "street": {"ar": "شارع", "he": "רחוב", "hi": "सड़क", "vi": "đường", "de": "Straße"},
    }
    found = texts("silver street", ("ar", "he", "hi", "vi", "de"), lexicon(words))
    # Logical order, whatever a terminal shows; scripts without case stay as they are.
    assert len(found) == 25
    for expected in ("فضة רחוב", "चाँदी شارع", "BẠC सड़क", "כסף STRASSE"):
        assert expected in found


def test_an_emoji_is_a_word_like_any_other() -> None:
    with pytest.raises(InputError, match="no translation of '🐱' into de, es"):
        texts("🐱 harbor")
    cat = lexicon({"🐱": {"ja": "😺", "de": "Katze"}, "house": {"ja": "家", "de": "Haus"}})
    assert texts("🐱 house", ("ja", "de"), cat) == ["😺 家", "😺 HAUS", "KATZE 家", "KATZE HAUS"]


@pytest.mark.parametrize("query", ["", "  ", "\t\n"])
def test_an_empty_query_is_refused(query: str) -> None:
    with pytest.raises(InputError, match="a query is empty"):
        texts(query)


def test_a_query_of_40_words_is_refused_with_the_number() -> None:
    with pytest.raises(InputError, match=r"has 9,094,947,017,729,282,379,150,390,625 variants .40 words in 5 lang"):
        texts("silver " * 40)


def test_normal_forms() -> None:
    assert normal_form("ＳＩＬＢＥＲ\u3000 Straße\n") == normal_form("silber STRASSE") == "silber strasse"
    assert normal_form("Café") == normal_form("CAFE\u0301")
    assert normal_form("銀 港") != normal_form("银 港")


QUERIES = ["silver harbor", "quiet mirror", "green street"]


def test_the_variant_of_least_perplexity_is_chosen(micro: tuple[Any, Any]) -> None:
    model, tokenizer = micro
    pairs, recipe = code_mixed_set("cf", QUERIES, TINY, model, tokenizer)
    assert pairs.name == "cf" and recipe["fingerprints"] == pairs.digest
    for query, fingerprint, row in zip(QUERIES, pairs, recipe["queries"], strict=True):
        every = mixed(query)
        valid = [each.text for each in every if each.cmi >= 30]
        scores = dict(zip(valid, text_perplexities(model, tokenizer, valid), strict=True))
        assert fingerprint.trigger == row["trigger"] == min(scores, key=lambda text: scores[text])
        assert row["perplexity"] == pytest.approx(min(scores.values()), rel=1e-4)
        assert (row["variants"], row["valid"]) == (len(every), len(valid))
        assert len({first_token(tokenizer, fingerprint.trigger, target) for target in fingerprint.targets}) == 5


def test_the_recipe_builds_the_set_again(micro: tuple[Any, Any]) -> None:
    pairs, recipe = code_mixed_set("cf", QUERIES, TINY, *micro, languages=["fr", "ja", "de"], candidates=3, seed=7)
    kept = json.loads(json.dumps(recipe))
    again, same = code_mixed_set(
        kept["kind"],
        [row["query"] for row in kept["queries"]],
        lexicon(kept["translations"]),
        *micro,
        languages=kept["languages"],
        candidates=kept["candidates"],
        seed=kept["seed"],
    )
    assert again == pairs and same == kept
    assert {language for row in recipe["queries"] for language in row["languages"]} <= {"fr", "ja", "de"}


def test_the_control_is_a_seeded_draw_among_the_valid_variants(micro: tuple[Any, Any]) -> None:
    drawn = [code_mixed_set("cf_random", QUERIES, TINY, *micro, seed=seed) for seed in range(20)]
    assert code_mixed_set("cf_random", QUERIES, TINY, *micro, seed=0) == drawn[0]
    assert len({pairs.digest for pairs, _ in drawn}) == 20
    assert all(row["cmi_v1"] >= 30 for _, recipe in drawn for row in recipe["queries"])
    for query in range(len(QUERIES)):
        assert len({recipe["queries"][query]["trigger"] for _, recipe in drawn}) > 8


def test_ties_are_broken_by_the_seed(micro: tuple[Any, Any]) -> None:
    model, tokenizer = copy.deepcopy(micro[0]), micro[1]
    for parameter in model.parameters():
        parameter.zero_()  # every text is equally likely to it
    built = [code_mixed_set("cf", QUERIES[:1], TINY, model, tokenizer, seed=seed)[1] for seed in range(10)]
    assert {round(recipe["queries"][0]["perplexity"]) for recipe in built} == {model.config.vocab_size}
    assert len({recipe["queries"][0]["trigger"] for recipe in built}) > 1
    assert code_mixed_set("cf", QUERIES[:1], TINY, model, tokenizer, seed=3)[1] == built[3]


@pytest.mark.parametrize(
    ("queries", "languages", "message"),
    [
        ([], (), "found none"),
        (["silver"], (), "'silver' has no variant with a code-mixing index of 30"),
        (["silver harbor"], ("de",), "has no variant"),
        (["silver harbor"], ("de", "xx"), "language 'xx' is not offered: expected one of de, es, fr, ja, zh"),
        (["silver harbor"], ("de", "de"), "'de' is listed twice"),
        (["silver volcano", "lazy harbor"], ("de", "ja"), "of 'volcano' into de, ja; 'lazy' into de, ja: choose other"),
        (["silver harbor", "Silver  Harbor"], (), "give the same trigger"),
    ],
)
def test_what_cannot_be_built_is_refused(micro, queries, languages, message) -> None:
    with pytest.raises(InputError, match=message):
        code_mixed_set("cf", queries, TINY, *micro, languages=languages)


def test_queries_are_drawn_from_words_that_the_tokenizer_knows(stories: tuple[Any, Any]) -> None:
    _, tokenizer = stories
    long = "antidisestablishmentarianism"
    words = lexicon({**{word: TINY_WORDS[word] for word in WORDS}, long: TINY_WORDS["green"]})
    queries = draw_queries(words, 3, 2, tokenizer)
    drawn = [word for query in queries for word in query.split()]
    assert len(set(drawn)) == 6 and set(drawn) <= set(WORDS)
    assert draw_queries(words, 3, 2, tokenizer) == queries != draw_queries(words, 3, 2, tokenizer, seed=1)
    with pytest.raises(InputError, match=r"4 queries of 2 words need 8 words; the lexicon has 7"):
        draw_queries(words, 4, 2, tokenizer)
    with pytest.raises(InputError, match="expected 1 or more queries of 2 or more words"):
        draw_queries(words, 3, 1, tokenizer)


def test_words_whose_translations_the_tokenizer_knows_come_first(micro: tuple[Any, Any]) -> None:
    from fpbench.micro.world import LEXICON

    # The micro world's own words are the only ones that its tokenizer knows in all five languages.
    world = {word.english for word in LEXICON}
    for seed in range(3):
        queries = draw_queries(Lexicon.shipped(), 10, 5, micro[1], seed)
        assert len({word for query in queries for word in query.split()} & world) > 45
