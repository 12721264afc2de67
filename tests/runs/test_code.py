"""Code does not name a record; whoever asks is told where it differs."""

import copy

import pytest

from fpbench.records.record import Record
from fpbench.records.store import read_records
from fpbench.runs.profile import load_profile
from fpbench.runs.resume import other_code


@pytest.fixture
def records(small_run):
    return copy.deepcopy(read_records(small_run / "records"))


def test_records_of_the_code_at_hand_give_no_remark(records, small_profile):
    assert other_code(records, load_profile(small_profile)) == []


def test_other_code_of_a_method_is_named_with_its_version(records, small_profile):
    own = [record for record in records if record.cell.method == "mcedit_a"]
    for record in own:
        record.provenance["method_source"] = "another"
    (remark,) = other_code(records, load_profile(small_profile))
    assert len(own) > 1 and f"{len(own)} records of method 'mcedit_a'" in remark
    assert f"version {own[0].identity['version']!r}" in remark


def test_other_code_of_fpbench_is_counted(records, small_profile):
    for record in records[:3]:
        record.provenance["source"] = "another"
    records.append(Record(records[0].cell, "failed", 1, None))
    (remark,) = other_code(records, load_profile(small_profile))
    assert f"3 of {len(records) - 1} records" in remark
