"""The record: what is read is what is written, and the schema in the docs is that of the class."""

import json

import pytest
from pydantic import TypeAdapter

from fpbench.records.cell import Cell
from fpbench.records.record import Record, schema
from tests.conftest import ROOT

COMMITTED = [*(ROOT / "leaderboard" / "records").rglob("*.json"), *(ROOT / "submissions").glob("*/records/**/*.json")]


def test_the_schema_in_the_docs_is_that_of_the_class():
    assert (ROOT / "docs" / "record.schema.json").read_text(encoding="utf-8") == schema()


def test_committed_records_are_read_and_given_back_as_they_are():
    reader, named = TypeAdapter(Record), json.loads(schema())["properties"]
    for path in COMMITTED:
        content = json.loads(path.read_text(encoding="utf-8"))
        assert content.keys() <= named.keys()
        assert Record.from_dict(content) == reader.validate_python(content), path
        assert Record.from_dict(content).to_dict() == content, path


def test_a_failed_record_has_a_reason_and_no_result():
    record = Record(Cell("micro", "nlf", "lora", 42, "origin", "fsr"), "failed", 1, None, reason="out of memory")
    content = record.to_dict()
    assert content["reason"] == "out of memory" and not {"result", "proof", "cost", "queries"} & content.keys()
    assert Record.from_dict(content) == record


@pytest.mark.parametrize("missing", ["cell", "status", "id", "protocol"])
def test_what_lacks_a_part_of_every_record_is_none(missing):
    content = Record(Cell("micro", "nlf", "lora", 42, "origin", "fsr"), "done", 1, "x").to_dict()
    del content[missing]
    with pytest.raises(ValueError, match=missing):
        Record.from_dict(content)
