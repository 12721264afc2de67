"""Data sets of a hub on this machine, by `datasets`."""

import io
import json

import pyarrow
import pyarrow.parquet
import pytest

from fpbench.data import parse
from fpbench.errors import InputError
from fpbench.hub import download
from fpbench.hub.download import HubSource
from tests.hub.server import Hub

CARD = b"""---
configs:
- config_name: small
  data_files:
  - split: train
    path: small/train-*.parquet
- config_name: large
  data_files:
  - split: train
    path: large/train-*.parquet
  - split: test
    path: large/test-*.parquet
---
"""


def parquet(*texts: str) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "n": list(range(len(texts)))}), file)
    return file.getvalue()


def jsonl(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def texts(source: HubSource, commit: str) -> list[str]:
    return [row["text"] for row in download.load_rows(source, commit)]


@pytest.mark.parametrize("source", ["hub:a/b@main:train", "hub:a/b/c@v1.0:test", "hub:a/b@refs/pr/1:x"])
def test_a_source_is_written_as_it_was_read(source: str) -> None:
    assert str(parse(source)) == source


def test_configurations_and_splits_of_parquet_files(hub: Hub) -> None:
    files = {
        "README.md": CARD,
        "small/train-00000-of-00001.parquet": parquet("s"),
        "large/train-00000-of-00002.parquet": parquet("a", "b"),
        "large/train-00001-of-00002.parquet": parquet("c"),
        "large/test-00000-of-00001.parquet": parquet("t"),
    }
    commit = hub.push("datasets/acme/rows", files)
    source = HubSource("acme/rows", "large", "main", "train")
    assert download.dataset_commit(source) == commit
    assert download.load_rows(source, commit)[1] == {"text": "b", "n": 1}
    assert texts(source, commit) == ["a", "b", "c"]
    assert texts(HubSource("acme/rows", "large", "main", "test"), commit) == ["t"]
    assert not any("small" in file for file in hub.downloads())
    with pytest.raises(InputError, match="Config name is missing"):
        download.load_rows(HubSource("acme/rows", None, "main", "train"), commit)


def test_each_commit_has_its_own_rows(hub: Hub) -> None:
    source = HubSource("acme/rows", None, "main", "train")
    first = hub.push("datasets/acme/rows", {"train.jsonl": jsonl("one")})
    second = hub.push("datasets/acme/rows", {"train.jsonl": jsonl("two")})
    assert download.dataset_commit(source) == second
    assert texts(source, first) == ["one"] and texts(source, second) == ["two"] and texts(source, first) == ["one"]


def test_what_datasets_has_kept_of_another_commit_is_not_taken_for_it(hub: Hub) -> None:
    source = HubSource("acme/rows", None, "main", "train")
    first = hub.push("datasets/acme/rows", {"train.jsonl": jsonl("one")})
    second = hub.push("datasets/acme/rows", {"train.jsonl": jsonl("two"), "rows.py": b"a script is refused"})
    assert texts(source, first) == ["one"]
    with pytest.raises(InputError, match="fell back on another version"):
        download.load_rows(source, second)
    hub.repositories["datasets/acme/rows"].gated = True
    with pytest.raises(InputError, match="is gated"):
        download.load_rows(source, second)
