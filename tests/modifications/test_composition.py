import copy
import subprocess
import sys

import pytest
import torch

import fpbench
from fpbench.adversaries.conditions import against_base, check, create, drift, modifications, proofs
from fpbench.errors import InputError
from fpbench.modifications.base import Composition, Modification, ModificationContext
from fpbench.registry import MODIFICATIONS

TEXTS = ["Once upon a time there was a little girl named Lily. She loved to play outside in the sun."] * 8
RIA = {"samples": 2, "length": 32}


UNLEARN, SPF = {"unlearn", "unlearn_masked", "unlearn_ranked"}, {"spf_alpaca", "spf_math"}
OWN = {name: MODIFICATIONS.get(name) for name in MODIFICATIONS.own}


def test_what_the_classes_say_of_themselves():
    """Identities, plans and the board follow from these: a change renames records or changes AVG."""
    tuned, merged, spared = (
        {f"{kind}_{name}" for name in names}
        for kind, names in (("finetune", ("alpaca", "math")), ("merge", ("slerp",)), ("fsft", ("alpaca", "math")))
    )
    assert {name for name, each in OWN.items() if each.leaves} == {"int8", "nf4", "activation"}
    assert {name for name, each in OWN.items() if each.slowdown != 1} == {"int8", "nf4", "activation"}
    assert {name for name, each in OWN.items() if each.against_base} == merged | spared | {
        "merge",
        "merge_ties",
        "spectral",
        "distil",
    }
    assert {name for name, each in OWN.items() if each.trains} == tuned | spared | SPF | UNLEARN | {
        "prune_restore", "mismatch", "overwrite", "distil",
    }  # fmt: skip
    assert {name: each.needs for name, each in OWN.items() if each.needs} == {
        "merge_sibling": ("siblings",), "merge_ties": ("siblings",), "overwrite": ("method",),
        "unlearn_one": ("leaked",), **dict.fromkeys(UNLEARN, ("leaked",)), **dict.fromkeys(SPF, ("fingerprints",)),
    }  # fmt: skip
    assert {name for name, each in OWN.items() if each.on_the_way} == tuned | UNLEARN
    assert drift() == ("finetune_alpaca", "finetune_math", "int8", "nf4", "ria30", "ria40")
    assert {name: each.data for name, each in OWN.items() if each.data} == {
        "finetune_alpaca": ("alpaca",), "finetune_math": ("math",), "fsft_alpaca": ("alpaca",), "fsft_math": ("math",),
        "ria": ("calibration",), "ria30": ("calibration",), "ria40": ("calibration",),
        "prune_restore": ("alpaca", "calibration"), "prune_restore_heads": ("calibration",),
        "spf_alpaca": ("alpaca",), "spf_math": ("math",),
        **dict.fromkeys(["mismatch", "distil", *UNLEARN], ("alpaca",)),
    }  # fmt: skip


def test_the_classes_are_asked_without_torch():
    code = (
        "import sys; from fpbench.registry import MODIFICATIONS; [MODIFICATIONS.get(name) for name in "
        "MODIFICATIONS.own]; assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_condition_from_elsewhere_has_defaults():
    assert modifications("ria30+theirs") == [OWN["ria30"], Modification]
    assert not against_base("theirs") and Modification.implausible({}) is None
    assert proofs("theirs", {"a": 1}) == {"theirs": {"a": 1}}
    assert proofs("ria30+theirs", {"theirs": {"a": 1}}) == {"theirs": {"a": 1}}


def test_what_needs_the_base():
    searched = {name: {"learning_rate": "search"} for name in ("finetune_math", "fsft_math")}
    assert create("finetune_math", searched).needs_base and create("ria30+finetune_math", searched).needs_base
    assert create("ria30+merge", {}).needs_base
    assert not create("finetune_math", {"finetune_math": {"learning_rate": 1e-4}}).needs_base
    assert not create("ria30+nf4", {}).needs_base


def test_parts_are_applied_in_order_each_with_its_settings_and_proof(stories):
    model, context = copy.deepcopy(stories[0]), ModificationContext(calibration=TEXTS)
    modification = create("ria30+nf4", {"ria30": RIA, "ria40": {"samples": 99}})
    modified = modification.apply(model, stories[1], context)
    assert list(modified.proof) == ["ria30", "nf4"]
    assert modified.proof["ria30"]["sparsity"] == pytest.approx(0.3, abs=1e-3)
    assert modified.proof["ria30"]["calibration_tokens"] == 64
    assert modified.proof["nf4"]["bits_per_weight"] == pytest.approx(4.5)
    by_hand = copy.deepcopy(stories[0])
    for name, settings in (("ria30", RIA), ("nf4", {})):
        by_hand = MODIFICATIONS.get(name)(**settings).apply(by_hand, stories[1], context).model
    ids = torch.tensor([stories[1]("One day, a girl")["input_ids"]])
    with torch.no_grad():
        assert torch.equal(modified.model(ids).logits, by_hand(ids).logits)


def test_a_part_sees_what_the_one_before_it_left(stories):
    pruned, context = copy.deepcopy(stories[0]), ModificationContext(base=dict(stories[0].named_parameters()))
    weight = pruned.model.layers[0].mlp.up_proj.weight
    weight.mul_(1.5)
    proof = create("merge+merge_slerp@0.5", {}).apply(pruned, stories[1], context).proof
    assert weight.norm() == pytest.approx(1.125 * stories[0].model.layers[0].mlp.up_proj.weight.norm())
    assert [each["delta_left"] for each in proof.values()] == pytest.approx([0.5, 0.5], abs=1e-5)


def test_identity_holds_every_part():
    identity = create("ria30+int8", {"ria30": RIA}).identity
    assert identity == {"ria30": {"version": "2", "settings": RIA}, "int8": {"version": "1", "settings": {}}}
    assert not isinstance(create("int8", {}), Composition)


def test_what_compares_with_the_base():
    assert all(map(against_base, ("unlearn@5", "nf4+unlearn_one", "overwrite", "spf_math", "distil", "hunt_leaked@9")))
    assert not any(map(against_base, ("origin", "mismatch@0.5", "hunt@9", "merge_sibling")))
    assert [against_base(name) for name in ("merge", "ria30+merge", "fsft_math", "ria30", "nf4")] == [True] * 3 + [
        False
    ] * 2


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("ria30+nf5", "unknown condition 'nf5'.*did you mean 'nf4'"),
        ("origin+nf4", "unknown condition 'origin'"),
        ("ria30+", "unknown condition ''"),
        ("ria30+ria30", "names 'ria30' twice"),
        ("nf4+ria30", "applies 'ria30' to a quantised model.*put 'nf4' last"),
        ("ria30+int8+nf4", "put 'int8' last"),
    ],
)
def test_what_cannot_be_composed(condition, message):
    for refuse in (check, lambda name: create(name, {})):
        with pytest.raises(InputError, match=message) as error:
            refuse(condition)
        assert "\n" not in str(error.value)


def test_modify_composes_and_takes_settings_by_part_and_the_base(micro):
    model, tokenizer = copy.deepcopy(micro[0]), micro[1]
    model.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    modified = fpbench.modify(model, tokenizer, "merge@1+ria30", {"ria30": RIA}, base=micro[0])
    weight, base = (each.model.layers[0].mlp.up_proj.weight for each in (modified, micro[0]))
    assert (weight == 0).float().mean().item() == pytest.approx(0.3, abs=1e-3)
    assert torch.equal(weight[weight != 0], base[weight != 0])
    with pytest.raises(InputError, match="give the base"):
        fpbench.modify(copy.deepcopy(micro[0]), tokenizer, "merge")
    with pytest.raises(InputError, match="'ria40'.*ria30, nf4"):
        fpbench.modify(copy.deepcopy(micro[0]), tokenizer, "ria30+nf4", {"ria40": {"samples": 1}})
