"""Methods that hand back another's update are remarked on, from the sketches in their records."""

import base64
import json
from pathlib import Path

import pytest
import torch

from fpbench.board.updates import SAME, cosine
from fpbench.cli import main
from fpbench.models.sketch import SIZE, sketch
from fpbench.records.store import Store
from tests.board.written import MODIFIED, fsr, grid

SHAPES = {"a.weight": (300, 70), "b.weight": (1_000, 41), "c.bias": (17,)}


def drawn(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def true_cosine(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    a, b = (torch.cat([each[name].flatten().double() for name in SHAPES]) for each in (one, other))
    return float(a @ b / (a.norm() * b.norm()))


BASE = drawn(0)


def sketched(change: dict[str, torch.Tensor]) -> str:
    return sketch({name: BASE[name] + each for name, each in change.items()}, BASE)


@pytest.mark.parametrize(("share", "allowed"), [(0.0, 0.3), (0.5, 0.2), (0.02, 0.0015), (0.001, 1e-5)])
def test_a_sketch_keeps_the_cosine_of_two_updates(share: float, allowed: float) -> None:
    """The nearer two updates are, the better: (1 - cos²)/√128 is one standard deviation."""
    one, noise = drawn(1), drawn(2)
    other = noise if share == 0.0 else {name: one[name] + share * noise[name] for name in SHAPES}
    assert cosine(sketched(one), sketched(other)) == pytest.approx(true_cosine(one, other), abs=allowed)


def test_a_scaled_update_is_the_same_and_a_turned_one_is_not() -> None:
    one = drawn(1)
    assert cosine(sketched(one), sketched({name: 0.3 * each for name, each in one.items()})) > 0.99999
    assert cosine(sketched(one), sketched({name: -each for name, each in one.items()})) < -0.99999
    assert cosine(sketched(one), sketched({"a.weight": one["a.weight"]})) < SAME


def test_it_does_not_depend_on_the_order_of_the_parameters_or_their_dtype() -> None:
    one = drawn(1)
    assert sketched(dict(reversed(one.items()))) == sketched(one)
    halves = ({name: each.bfloat16() for name, each in found.items()} for found in (BASE, drawn(1)))
    before, after = halves
    assert len(base64.b64decode(sketch(after, before))) == 4 * SIZE


# On the board.


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(tmp_path)
    return grid(tmp_path / "own")


def proven(store: Store, method: str, found: object, p: float = 0.5) -> None:
    proof = {"weights_digest": f"of {method}", "sketch": found}
    fsr(store, method, "origin", [p] * 10, proof=proof)


def rows(capsys: pytest.CaptureFixture[str]) -> dict[str, dict]:
    Path("submissions").mkdir(exist_ok=True)
    board = ["leaderboard", "--records", "own/records", "--claimed", "submissions", "--format"]
    assert main([*board, "json"]) == 0
    found = {row["method"]: row for row in json.loads(capsys.readouterr().out)["rows"] if row["trust"] != "reported"}
    assert main([*board, "md"]) == 0
    text = capsys.readouterr().out
    return found | {"text": text}


def test_both_rows_say_so(own: Store, capsys: pytest.CaptureFixture[str]) -> None:
    one = drawn(1)
    near = {name: each + 0.01 * drawn(2)[name] for name, each in one.items()}
    proven(own, "strong", sketched(one))
    proven(own, "weak", sketched(near))
    found = rows(capsys)
    assert list(found["strong"]["alike"]) == ["weak"] and list(found["weak"]["alike"]) == ["strong"]
    assert found["strong"]["alike"]["weak"] == pytest.approx(true_cosine(one, near), abs=1e-4)
    assert "update like strong's (cosine 0.99" in found["text"]
    assert "alike" not in found["base"]


def test_a_claimed_row_is_compared_too_and_another_update_is_not_remarked_on(own: Store, capsys) -> None:
    theirs = Store(Path("submissions/stranger"))
    for condition in MODIFIED:
        fsr(theirs, "base", condition, [0.0] * 10)
        fsr(theirs, "stranger", condition, [1.0] * 10)
    fsr(theirs, "base", "origin", [0.0] * 10)
    proven(theirs, "stranger", sketched(drawn(1)))
    proven(own, "strong", sketched(drawn(1)))
    proven(own, "weak", sketched(drawn(3)))
    found = rows(capsys)
    assert found["stranger"]["trust"] == "claimed"
    assert found["stranger"]["alike"] == {"strong": pytest.approx(1.0)}
    assert "alike" not in found["weak"]


NOT_FINITE = base64.b64encode(b"\xff" * 4 * SIZE).decode()


@pytest.mark.parametrize("other", ["", "AAAA", "no base64 é", 5, None, "A" * 684, NOT_FINITE])
def test_what_is_no_sketch_is_not_compared(own: Store, other: object, capsys: pytest.CaptureFixture[str]) -> None:
    proven(own, "strong", sketched(drawn(1)))
    proven(own, "weak", other)
    assert "alike" not in rows(capsys)["strong"]
