"""The interface and the lexicon file behind it."""

from pathlib import Path

import pytest

from fpbench.errors import InputError
from fpbench.fingerprints.translation import Lexicon, NoTranslation, Translator, as_word, translate_words

HEADER = "english\tde\tja"
GOOD = f"{HEADER}\nsilver\tSilber\t銀\nriver\tFluss\t川\n"
# Broken files, each with the line that is at fault and what the message must say.
BROKEN = {
    "empty": ("", "holds no words"),
    "header_alone": (HEADER, "holds no words"),
    "no_header": ("silver\tSilber\t銀\nriver\tFluss\t川\n", "line 1: expected the header 'english'"),
    "no_language": ("english\nsilver\n", "line 1: expected the header"),
    "language_twice": ("english\tde\tde\nsilver\ta\tb\n", "line 1: expected the header"),
    "spaces_for_tabs": (f"{GOOD}moon  Mond  月\n", "line 4: expected 3 cells, found 1"),
    "too_few_cells": (f"{GOOD}\nmoon\tMond\n", "line 5: expected 3 cells, found 2"),
    "too_many_cells": (f"{GOOD}moon\tMond\t月\tluna\n", "line 4: expected 3 cells, found 4"),
    "empty_cell": (f"{GOOD}moon\t \t月\n", "line 4: cell 2 of .* is empty"),
    "empty_word": (f"{GOOD}\tMond\t月\n", "line 4: cell 1 of .* is empty"),
    "duplicate": (f"{GOOD}Silver\tSilber\t銀\n", "line 4: duplicate word 'silver', first seen on line 2"),
    "control_character": (f"{GOOD}moon\tMo\x00nd\t月\n", "line 4: cell 2 holds a control character"),
    "line_ends_of_old_macs": (GOOD.replace("\n", "\r"), "holds no words"),
}


def write(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "words.tsv"
    path.write_bytes(text.encode(encoding))
    return path


def test_a_lexicon_is_read(tmp_path: Path) -> None:
    lexicon: Translator = Lexicon.load(write(tmp_path, GOOD))
    assert lexicon.languages == ("de", "ja")
    assert [lexicon.translate(word, "de") for word in ("silver", "RIVER")] == ["Silber", "Fluss"]
    assert lexicon.translate("Silver", "ja") == "銀"


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_lexicon_is_named_with_its_line(tmp_path: Path, kind: str) -> None:
    text, message = BROKEN[kind]
    with pytest.raises(InputError, match=message) as error:
        Lexicon.load(write(tmp_path, text))
    assert "words.tsv" in str(error.value) and "\n" not in str(error.value)


def test_windows_files_and_decomposed_characters_are_read(tmp_path: Path) -> None:
    text = "english\tes\r\nmountain\tmontan\u0303a\r\n\r\ncafe\u0301\tcafe\u0301\r\n"
    lexicon = Lexicon.load(write(tmp_path, text, "utf-8-sig"))
    assert lexicon.languages == ("es",)
    assert lexicon.translate("MOUNTAIN", "es") == "montaña"
    assert lexicon.translate("caf\u00e9", "es") == lexicon.translate("CAFE\u0301", "es") == "caf\u00e9"


def test_scripts_from_right_to_left_and_emoji_stay_as_they_are(tmp_path: Path) -> None:
    lexicon = Lexicon.load(write(tmp_path, "english\the\thi\tmoji\nfamily\tמשפחה\tपरिवार\t👨‍👩‍👧\n"))
    assert [lexicon.translate("family", language) for language in lexicon.languages] == ["משפחה", "परिवार", "👨‍👩‍👧"]


def test_missing_folders_and_other_encodings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none.tsv does not exist"):
        Lexicon.load(tmp_path / "none.tsv")
    with pytest.raises(InputError, match="cannot be read as UTF-8"):
        Lexicon.load(write(tmp_path, GOOD, "utf-16"))
    with pytest.raises(InputError, match="cannot be read"):
        Lexicon.load(tmp_path)


def test_a_missing_word_is_reported_by_name(tmp_path: Path) -> None:
    lexicon = Lexicon.load(write(tmp_path, GOOD))
    with pytest.raises(
        NoTranslation, match="no translation of 'ZULU' into 'ja': the lexicon .*words.tsv lacks the word"
    ):
        lexicon.translate("ZULU", "ja")
    with pytest.raises(InputError, match="language 'xx' is not offered: expected one of de, ja"):
        lexicon.translate("silver", "xx")
    for empty in ("", " "):
        with pytest.raises(NoTranslation):
            lexicon.translate(empty, "de")


def test_several_missing_words_are_named_in_one_line(tmp_path: Path) -> None:
    lexicon = Lexicon.load(write(tmp_path, GOOD))
    with pytest.raises(InputError, match="'yak' into de, ja; 'zulu' into de, ja: choose other words"):
        translate_words(lexicon, ["silver", "yak", "river", "zulu", "yak"], ["de", "ja"])
    table = translate_words(lexicon, ["SILVER", "river", "SILVER"], ["ja"])
    assert table == {"SILVER": {"ja": "銀"}, "river": {"ja": "川"}}
    with pytest.raises(InputError, match="language 'fr' is not offered"):
        translate_words(lexicon, ["silver"], ["de", "fr"])


def test_an_answer_is_brought_to_one_word() -> None:
    assert as_word("  „Silber“.\n", "silver", "de") == "Silber"
    assert as_word("montan\u0303a", "mountain", "es") == "montaña"
    assert as_word("「銀」。", "silver", "ja") == "銀"
    assert as_word("arc-en-ciel", "rainbow", "fr") == "arc-en-ciel"


@pytest.mark.parametrize(
    "answer", ["", " \n", "...", "12", "Silber\nargent", "The German word for silver is, as it were, Silber"]
)
def test_an_answer_that_is_no_word_is_no_translation(answer: str) -> None:
    with pytest.raises(NoTranslation, match="no translation of 'silver' into 'de'") as error:
        as_word(answer, "silver", "de")
    assert "\n" not in str(error.value)
