import json
import os
import stat

import pytest

from fpbench.errors import InputError, StorageError
from fpbench.ownership.interview import opened, question_id
from fpbench.ownership.suspects import Answer

QUESTION = {"suspect": {"url": "http://127.0.0.1/v1"}, "level": 1e-3, "seed": 42}
ANSWER = Answer(" Lotus ran", "suspect", 7, {"temperature": 0.6}, {"finish_reason": "length"})


def one_answer(path):
    with opened(path, QUESTION) as transcript:
        transcript.asking(3, "QUIET MIRROR")
        transcript.failed(3, "status 500")
        transcript.turned_down("top_k")
        transcript.asking(3, "QUIET MIRROR")
        transcript.answered(3, ANSWER)


def test_what_was_written_is_taken_in_again(tmp_path):
    path = tmp_path / "deep" / "t.jsonl"
    one_answer(path)
    before = path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with opened(path, dict(reversed(QUESTION.items()))) as transcript:
        assert transcript.answers == {3: ANSWER}
        assert transcript.requests == 2 and transcript.refused == ["top_k"]
    assert path.read_bytes() == before
    assert [json.loads(line)["event"] for line in before.splitlines()] == [
        "question", "request", "fault", "refused", "request", "answer",
    ]  # fmt: skip


def test_without_a_file_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one_answer(None)
    assert not list(tmp_path.iterdir())


def test_a_damaged_last_line_is_cut_off_at_every_byte(tmp_path, caplog):
    path = tmp_path / "t.jsonl"
    one_answer(path)
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for end in range(last + 1, len(whole)):
        path.write_bytes(whole[:end])
        caplog.clear()
        with opened(path, QUESTION) as transcript:
            assert transcript.answers == {} and transcript.requests == 2
            transcript.answered(3, ANSWER)
        assert "the last line" in caplog.text and "cut off" in caplog.text
        assert path.read_bytes() == whole


def test_a_damaged_first_line_begins_anew(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"event": "question", "schema": 2, "id')
    one_answer(path)
    with opened(path, QUESTION) as transcript:
        assert transcript.answers == {3: ANSWER}


def test_damage_in_the_middle_is_refused(tmp_path):
    path = tmp_path / "t.jsonl"
    one_answer(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"{broken\n", *lines[3:]]))
    with pytest.raises(InputError, match="line 3: damaged"), opened(path, QUESTION):
        pass
    path.write_bytes(b"".join([*lines[:2], b'{"event": "answer", "fingerprint": 3}\n', *lines[3:]]))
    with pytest.raises(InputError, match="line 3: its hash does not fit"), opened(path, QUESTION):
        pass


def test_an_edit_is_refused_and_says_which_line(tmp_path):
    path = tmp_path / "t.jsonl"
    one_answer(path)
    lines = path.read_bytes().splitlines(keepends=True)
    spaced = lines[2].replace(b'": ', b'":  ', 1)
    for number, edited in (
        (6, [*lines[:5], lines[5].replace(b"Lotus", b"Zebra")]),
        (3, [*lines[:2], spaced, *lines[3:]]),
        (1, [lines[0].replace(b"0.001", b"0.5"), *lines[1:]]),
        (4, [*lines[:3], *lines[4:]]),  # a line is gone
        (4, [*lines[:3], lines[5], lines[4], lines[3]]),  # in another order
        (3, [*lines[:2], lines[5][: lines[5].index(b', "chain"')] + b"}\n"]),  # an answer without a hash
    ):
        path.write_bytes(b"".join(edited))
        with pytest.raises(InputError, match=f"line {number}: its hash does not fit"), opened(path, QUESTION):
            pass
        assert path.read_bytes() == b"".join(edited)


def test_a_transcript_without_hashes_is_refused_in_one_line(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"event": "question", "schema": 1, "id": "0", "question": {}}\n')
    with (
        pytest.raises(InputError, match="version 1, whose lines are not chained by hash.*choose another file") as found,
        opened(path, QUESTION),
    ):
        pass
    assert len(str(found.value).splitlines()) == 1


def test_another_question_is_refused_and_says_what_differs(tmp_path):
    path = tmp_path / "t.jsonl"
    one_answer(path)
    before = path.read_bytes()
    with (
        pytest.raises(InputError, match=r"another question \(other level\)"),
        opened(path, QUESTION | {"level": 0.01}),
    ):
        pass
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content", ["{}\n", "words", '{"trigger": "A", "targets": ["B"]}\n', "[1]\n[2]\n", "words\nand words\n"]
)
def test_another_file_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "t.jsonl"
    path.write_text(content)
    with pytest.raises(InputError), opened(path, QUESTION):
        pass
    assert path.read_text() == content


def test_one_verification_at_a_time(tmp_path):
    path = tmp_path / "t.jsonl"
    with opened(path, QUESTION), pytest.raises(InputError, match="another verification"), opened(path, QUESTION):
        pass


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"), opened(tmp_path / "file" / "t.jsonl", QUESTION):
        pass


def test_a_full_disk_is_a_storage_error(tmp_path, monkeypatch):
    with opened(tmp_path / "t.jsonl", QUESTION) as transcript:
        monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(StorageError, match="No space left"):
            transcript.asking(0, "A")


def test_half_characters_survive(tmp_path):
    with opened(tmp_path / "t.jsonl", QUESTION) as transcript:
        transcript.answered(0, Answer("a\ud800\n\u2028", None, 1, {}))
    with opened(tmp_path / "t.jsonl", QUESTION) as transcript:
        assert transcript.answers[0].text == "a\ud800\n\u2028"


def test_the_id_does_not_depend_on_the_order_of_keys():
    assert question_id({"a": 1, "b": [2]}) == question_id({"b": [2], "a": 1}) != question_id({"a": 1, "b": [3]})
