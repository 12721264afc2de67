"""Which candidates a checkpoint can descend from: edits, noise, siblings, strangers."""

import json

import pytest
import torch
from safetensors.torch import save_file

import fpbench
from fpbench.cli import main
from fpbench.errors import InputError
from fpbench.ownership.parents import DESCENTS, LARGEST_EXCESSES, largest_excess

WIDTH, BLOCKS = 48, 3


def weights(seed, scale=1.0):
    draw = torch.Generator().manual_seed(seed)
    return {number: scale * torch.randn(WIDTH, WIDTH, generator=draw) for number in range(BLOCKS)}


def plus(one, other):
    return {number: one[number] + other[number] for number in one}


def saved(folder, blocks):
    folder.mkdir(parents=True)
    tensors = {f"model.layers.{number}.mlp.up_proj.weight": matrix for number, matrix in blocks.items()}
    save_file(tensors | {"model.embed_tokens.weight": torch.zeros(4, WIDTH)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return str(folder)


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A base, two editions of it, and a stranger of the same shape."""
    folder, base = tmp_path_factory.mktemp("family"), weights(1)
    made = {"base": base, "left": plus(base, weights(2, 0.02)), "right": plus(base, weights(3, 0.02))}
    return {name: saved(folder / name, each) for name, each in made.items()} | {
        "stranger": saved(folder / "stranger", weights(9)),
        "left, noisy": saved(folder / "noisy", plus(made["left"], weights(4, 0.3))),
        "base, noisy": saved(folder / "plain", plus(base, weights(5, 0.3))),
        "merge": saved(folder / "merge", {n: (made["left"][n] + made["right"][n]) / 2 for n in base}),
        "longer": saved(folder / "longer", made["left"] | {BLOCKS: weights(7)[0]}),
    }


CANDIDATES = ("base", "left", "right", "stranger")


@pytest.mark.parametrize(
    "suspect, possible",
    [
        ("left, noisy", {"left"}),  # noise fifteen times the edit
        ("base, noisy", {"base"}),
        ("merge", {"base", "left", "right"}),  # keeps half of either: nothing is excluded
        ("longer", {"left"}),  # a further block matches none
    ],
)
def test_what_the_suspect_keeps_of_a_candidate_tells_it_from_its_relatives(family, suspect, possible):
    found = fpbench.parents(family[suspect], [family[name] for name in CANDIDATES])
    assert set(found.possible) == {family[name] for name in possible}
    assert found.candidates[3].state == "unrelated" and found.matrices == BLOCKS


def test_where_no_candidate_is_related_the_set_is_empty(family):
    found = fpbench.parents(family["stranger"], [family["base"], family["left"]])
    assert found.possible == () and {each.state for each in found.candidates} == {"unrelated"}


def test_other_shapes_are_not_comparable_and_nothing_is_said_about_them(family, tmp_path):
    other = saved(tmp_path / "narrow", {number: matrix[:, :32].contiguous() for number, matrix in weights(1).items()})
    found = fpbench.parents(family["left"], [other, family["base"]])
    assert [each.state for each in found.candidates] == ["not comparable", "possible"]


def test_the_verb_names_the_set(family, tmp_path, capsys):
    command = ["compare", family["left, noisy"], family["base"], family["left"], "--out", str(tmp_path / "out")]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{family['left, noisy']} can descend from: {family['left']} (coverage 95 %)")
    assert json.loads((tmp_path / "out" / "parents.json").read_text())["possible"] == [family["left"]]


def test_a_coverage_beyond_the_known_descents_is_refused(family, capsys):
    assert main(["compare", family["left"], family["base"], family["right"], "--coverage", "0.999"]) == 2
    assert f"what {DESCENTS} known descents support" in capsys.readouterr().err
    assert main(["compare", family["left"], family["base"], family["right"], "--unrelated", family["stranger"]]) == 2
    with pytest.raises(InputError, match="a list of different checkpoints"):
        fpbench.parents(family["left"], [family["base"], family["base"]])


def test_larger_coverage_keeps_more():
    levels = [largest_excess(coverage) for coverage in (0.5, 0.9, 0.95, DESCENTS / (DESCENTS + 1))]
    assert levels == sorted(levels) and levels[0] == 0.0 and levels[-1] == LARGEST_EXCESSES[-1]
