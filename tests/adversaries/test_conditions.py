import subprocess
import sys

import pytest

from fpbench.adversaries.base import Adversary
from fpbench.adversaries.conditions import (
    adversaries,
    changes_weights,
    check,
    create,
    curves,
    drift,
    expand,
    is_attack,
    level,
    proofs,
    removal,
)
from fpbench.errors import InputError
from fpbench.modifications.base import Composition
from fpbench.registry import ADVERSARIES, MODIFICATIONS


def test_a_part_has_a_dose_or_its_class_s_own():
    assert [each.amount for each in adversaries("suppress@3+ria@0.5")] == [3]
    assert [each.amount for each in adversaries("suppress")] == [1]
    assert create("suppress@3+ria@0.5", {}).ratio == 0.5
    assert create("ria", {}).ratio == create("ria30", {}).ratio == 0.3


def test_a_condition_of_run_time_parts_alone_leaves_the_weights():
    nothing = create("suppress@3", {})
    assert isinstance(nothing, Composition) and not nothing.parts and nothing.data == ()
    model = object()
    assert nothing.apply(model, None, None).model is model
    changed = {name: changes_weights(name) for name in ("origin", "suppress@3", "nf4", "suppress@3+nf4")}
    assert list(changed.values()) == [False, False, True, True]
    priced = {name for name in ("origin", "nf4", "ria30", "ria@0.3", "suppress", "nf4+suppress@3") if is_attack(name)}
    assert priced == {"ria@0.3", "suppress", "nf4+suppress@3"}
    assert level("suppress@3") == "L1" and level("suppress@3+merge@0.1") == "L3"


def test_doses_of_one_curve_are_those_on_the_same_weights():
    found = curves(["origin", "ria@0.5", "ria@0.3", "suppress@3", "ria@0.5+suppress@3", "ria@0.3+merge@0.1", "nf4"])
    assert found == {("ria",): [0.3, 0.5], ("ria@0.3", "merge"): [0.1]}
    assert curves(["finetune_alpaca", "finetune_alpaca@50"]) == {("finetune_alpaca",): [50]}


def test_presets():
    assert expand(["drift"]) == ("origin", *drift())
    assert expand(["origin", "nf4", "removal"])[:2] == ("origin", "nf4")
    assert {"suppress@1", "suppress@16", "ria@0.7", "merge@0.5"} <= set(removal())
    assert set(expand(["all"])) == {"origin", *drift(), *removal()}
    for condition in removal():
        check(condition)


def test_every_class_declares_what_it_is():
    for registry in (ADVERSARIES, MODIFICATIONS):
        for name in registry.own:
            found = registry.get(name)
            assert found.level in ("L0", "L1", "L2", "L3", "L4"), name
            assert set(found.pays) <= {"inference", "data", "parameters"}, name
            assert not found.dose or all(found.dose.least <= each <= found.dose.most for each in found.dose.list), name
            control = found.control
            assert not control or control in ADVERSARIES.own + MODIFICATIONS.own, name
    parts = (Adversary.changes_queries, Adversary.changes_sampling)
    for name in ADVERSARIES.own:
        found = ADVERSARIES.get(name)
        assert any(part.__func__(found) for part in parts) or found.weights is not Adversary.weights, name


def test_the_classes_are_asked_without_torch():
    code = (
        "import sys; from fpbench.adversaries.conditions import removal, adversaries, changes_weights\n"
        "[(adversaries(each), changes_weights(each)) for each in removal()]\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("supress@1", "unknown condition 'supress'.*did you mean 'suppress'"),
        ("suppress@-1", "'suppress@-1': the dose is tokens dropped, a whole number from 0, found '-1'"),
        ("suppress@0.5", "a whole number"),
        ("suppress@nan", "a whole number"),
        ("suppress@", "found ''"),
        ("ria@1.5", "share of the weights, a number from 0 to 0.95, found '1.5'"),
        ("ria@inf", "found 'inf'"),
        ("ria@0.30", "write the dose as ria@0.3"),
        ("nf4@4", "'nf4' takes no dose"),
        ("suppress@1+suppress@3", "names 'suppress' twice"),
        ("nf4+ria@0.5", "applies 'ria' to"),
        ("nf4++ria30", "unknown condition ''"),
    ],
)
def test_what_cannot_be_is_one_clear_line(condition, message):
    with pytest.raises(InputError, match=message) as error:
        check(condition)
    assert "\n" not in str(error.value)


def test_proofs_are_of_the_weights_parts():
    assert proofs("ria@0.5+suppress@3", {"sparsity": 0.5}) == {"ria@0.5": {"sparsity": 0.5}}
    assert proofs("ria@0.5+nf4", {"ria@0.5": {"a": 1}, "nf4": {"b": 2}}) == {"ria@0.5": {"a": 1}, "nf4": {"b": 2}}
    assert proofs("suppress@3", {}) == {}
