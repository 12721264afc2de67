import hashlib
import json
import os

from fpbench.records.store import Digests


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_file_is_read_again_only_when_size_or_time_changed(tmp_path):
    weights, memory = tmp_path / "weights", tmp_path / "digests.json"
    weights.write_text("one")
    assert Digests(memory).of(weights) == sha("one")
    time = weights.stat().st_mtime_ns
    weights.write_text("two")
    os.utime(weights, ns=(time, time))
    assert Digests(memory).of(weights) == sha("one"), "same size and time: remembered"
    os.utime(weights, ns=(time - 10**12, time - 10**12))
    assert Digests(memory).of(weights) == sha("two"), "a clock that jumps back changes the time, too"
    weights.write_text("three")
    assert Digests(memory).of(weights) == sha("three")


def test_a_damaged_memory_is_as_good_as_none(tmp_path):
    (tmp_path / "weights").write_text("one")
    for content in ("{", "[]", json.dumps({str(tmp_path / "weights"): "x"})):
        (tmp_path / "digests.json").write_text(content)
        assert Digests(tmp_path / "digests.json").of(tmp_path / "weights") == sha("one")
