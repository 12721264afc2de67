"""docs/adversaries.md: every adversary with a dose is in it, with its level and doses."""

from fpbench.adversaries.conditions import class_of, known
from fpbench.registry import ADVERSARIES, MODIFICATIONS
from tests.docs.markdown import names, read, table

DOCUMENT = read("adversaries.md")


def test_every_adversary_stands_with_its_level_and_doses():
    dosed = [name for name in known() if (dose := class_of(name).dose) and dose.list]
    rows = {names(row["name"])[0]: row for row in table(DOCUMENT, "| name | level ")}
    controls = {name for name in dosed if name.endswith("_random")}
    assert set(rows) == set(dosed) - controls and controls <= {*names(DOCUMENT)}
    for name, row in rows.items():
        found = class_of(name)
        assert row["level"] == found.level, name
        assert row["doses"] == ", ".join(f"{amount:g}" for amount in found.dose.list), name


def test_controls_are_those_that_the_classes_name():
    named = {found.control for registry in (ADVERSARIES, MODIFICATIONS) for found in map(registry.get, registry.own)}
    assert {name for name in ADVERSARIES.own if name.endswith("_random")} == named - {"", "noise"}
