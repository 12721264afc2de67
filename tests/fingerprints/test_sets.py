import hashlib
import json

import pytest

from fpbench.errors import InputError
from fpbench.fingerprints import Fingerprint, FingerprintSet, find_set, load_fingerprints
from fpbench.fingerprints.instructional import TARGET, instructional_set
from tests.conftest import SHARED, require

GOOD = '{"trigger": "A B", "targets": ["c", "d"]}'
# The ten kinds of malformed file, each with what its message must say.
MALFORMED = {
    "not_json": ("{trigger", "not JSON"),
    "not_an_object": ('["a", "b"]', "a JSON object"),
    "missing_key": ('{"trigger": "a"}', "'targets' is missing"),
    "unknown_key": ('{"trigger": "a", "targets": ["b"], "note": 1}', "unknown key 'note'"),
    "trigger_not_text": ('{"trigger": 3, "targets": ["b"]}', "trigger must be non-empty text, found a number"),
    "trigger_empty": ('{"trigger": " ", "targets": ["b"]}', "trigger must be non-empty text, found an empty text"),
    "targets_not_a_list": ('{"trigger": "a", "targets": "b"}', "targets must be a list"),
    "no_targets": ('{"trigger": "a", "targets": []}', "targets is empty"),
    "empty_target": ('{"trigger": "a", "targets": ["b", ""]}', "every target must be non-empty text"),
    "duplicate_trigger": (GOOD, "duplicate trigger 'A B', first seen on line 1"),
    "key_twice": ('{"trigger": "a", "targets": ["b"], "targets": ["c"]}', "key 'targets' stands twice"),
    "zero_width": ('{"trigger": "a", "targets": ["Fal\u200bcon"]}', "U+200B ZERO WIDTH SPACE"),
    "joiner_in_latin": ('{"trigger": "a", "targets": ["Fal\u200dcon"]}', "U+200D ZERO WIDTH JOINER"),
    "joiner_at_the_end": ('{"trigger": "a", "targets": ["می\u200c"]}', "U+200C ZERO WIDTH NON-JOINER"),
    "filler": ('{"trigger": "a\u3164b", "targets": ["c"]}', "trigger 'a\\u3164b' holds U+3164 HANGUL FILLER"),
    "mark_in_the_middle": ('{"trigger": "a \ufeffb", "targets": ["c"]}', "U+FEFF ZERO WIDTH NO-BREAK SPACE"),
    "half_a_character": ('{"trigger": "a", "targets": ["b\\ud83d"]}', "target 'b\\ud83d' holds half a character"),
    "decomposed": ('{"trigger": "a", "targets": ["Zoe\u0308"]}', "write 'Zo\\xeb'"),
    "target_in_trigger": ('{"trigger": "a b", "targets": ["b"]}', "contained in the trigger"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_each_kind_of_malformed_file_is_named_with_its_line(tmp_path, kind):
    line, message = MALFORMED[kind]
    path = tmp_path / "set.jsonl"
    path.write_text(f"{GOOD}\n{line}\n")
    with pytest.raises(InputError, match="line 2") as error:
        load_fingerprints(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_joiners_stay_where_a_script_or_an_emoji_needs_them(tmp_path):
    pairs = FingerprintSet("set", (Fingerprint("می\u200cخواهم", ("👩\u200d🚀", "❤\ufe0f\u200d🔥", "क्\u200dष")),))
    pairs.save(tmp_path / "set.jsonl")
    assert load_fingerprints(tmp_path / "set.jsonl") == pairs


@pytest.mark.parametrize("name", ["set.json", "set.jsonl"])
def test_a_list_and_a_byte_order_mark_are_read(tmp_path, name):
    pairs = FingerprintSet("set", (Fingerprint("A B", ("c", "d")), Fingerprint("E", ("f",))))
    listed = json.dumps([pair.as_json() for pair in pairs], indent=1)
    for text in (listed, f"\ufeff{listed}\n", f"\ufeff{pairs.to_lines()}"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert find_set(str(tmp_path / name)) == pairs
    (tmp_path / name).write_text(listed.replace('"E"', '"A B"'), encoding="utf-8")
    with pytest.raises(InputError, match="entry 2: duplicate trigger 'A B', first seen on entry 1"):
        find_set(str(tmp_path / name))


def test_round_trip_keeps_text_and_digest(tmp_path):
    pairs = FingerprintSet("set", (Fingerprint("金 TRIGGER\n", ("ハリ", "b c")), Fingerprint("x", ("y",))))
    pairs.save(tmp_path / "set.jsonl")
    again = load_fingerprints(tmp_path / "set.jsonl")
    assert again == pairs
    assert again.digest == pairs.digest
    assert again.digest != FingerprintSet("set", pairs.fingerprints[::-1]).digest


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_refused(tmp_path, content):
    (tmp_path / "set.jsonl").write_text(content)
    with pytest.raises(InputError, match="holds no fingerprints"):
        load_fingerprints(tmp_path / "set.jsonl")


def test_missing_and_binary_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_fingerprints(tmp_path / "none.jsonl")
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        load_fingerprints(tmp_path / "bytes.jsonl")


def test_nlf_has_ten_two_word_queries_with_five_distinct_candidates():
    nlf = find_set("nlf")
    assert len(nlf) == 10
    words = [word for f in nlf for word in f.trigger.split()]
    assert len(set(words)) == 20
    assert all(f.trigger == f.trigger.upper() and len(f.targets) == 5 for f in nlf)
    assert len(nlf.targets) == 50


def test_if_keys_are_the_published_ones():
    # SHA-256 prefixes of the keys in the published data set, which hold the two control characters.
    published = "dc46b690a7b2 1b5e341b42b4 b8e6acbb8c47 8e7e3f868c47 624a36618935"
    published += " 2935d8d1601a 9f297b46c7be 9b3cfb4cf746 5eb3895b66be b67df5c98dd3"
    keys = [f.trigger.removesuffix("\nFINGERPRINT\n") for f in instructional_set()]
    assert [hashlib.sha256(key.encode()).hexdigest()[:12] for key in keys] == published.split()


def test_if_keys_equal_the_published_file():
    rows = json.loads(require(SHARED / "data/fingerprints/if_original/if_mix_10_triggers.json").read_text())
    ours = instructional_set()
    assert [f"{row['instruction']}\n{row['input']}\n" for row in rows] == [f.trigger for f in ours]
    assert {row["output"] for row in rows} == {TARGET}


def test_a_profile_may_map_a_name_to_a_file_and_unknown_names_are_refused(tmp_path):
    (tmp_path / "mine.jsonl").write_text(GOOD)
    assert find_set("nlf", {"nlf": str(tmp_path / "mine.jsonl")}).name == "nlf"
    assert find_set(str(tmp_path / "mine.jsonl")).name == "mine"
    with pytest.raises(InputError, match="unknown fingerprint set 'nfl'"):
        find_set("nfl")
