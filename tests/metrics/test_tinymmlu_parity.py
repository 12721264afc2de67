"""The tinyMMLU estimate against recorded runs of tinyBenchmarks (../shared/parity/README.md)."""

from pathlib import Path

import numpy as np
import pytest

from fpbench.errors import InputError
from fpbench.metrics.tinymmlu import Parameters, estimate, surprise
from tests.parity import Recording, sets


@pytest.fixture(scope="module", params=sets("tinymmlu"))
def recording(request: pytest.FixtureRequest) -> Recording:
    found: Recording = request.param
    return found


@pytest.fixture(scope="module")
def parameters(recording: Recording) -> Parameters:
    (path,) = recording.folder.glob("*.npz")
    return Parameters.load(path)


def test_estimates(recording: Recording, parameters: Parameters) -> None:
    y = recording["y"].numpy().astype(bool)
    found = [estimate(row, parameters) for row in y]
    for name in ("irt", "pirt", "gpirt"):
        expected = recording[name].numpy()
        # Without a finite optimum the search levels out wherever it does.
        tolerance = np.where(y.all(1) | ~y.any(1), 1e-4, 1e-6)
        error = np.abs([getattr(each, name) for each in found] - expected)
        assert (error <= tolerance).all(), f"{name}: {error.max():.1e} in answer vector {error.argmax()}"


def test_no_recorded_ability_is_likelier(recording: Recording, parameters: Parameters) -> None:
    A, B = parameters.A[:, parameters.anchor_items], parameters.B[:, parameters.anchor_items]
    for row, theta in zip(recording["y"].numpy().astype(float), recording["theta"].numpy(), strict=True):
        if 0 < row.sum() < len(row):
            ours = np.array(estimate(row.astype(bool), parameters).theta)
            assert surprise(ours, row, A, B)[0] <= surprise(theta, row, A, B)[0] + 1e-9


def few(**changes: object) -> Parameters:
    """Two subjects of four and two items, three of them anchors."""
    generator = np.random.default_rng(1)
    values = {
        "A": generator.uniform(0.5, 1.5, (2, 6)),
        "B": generator.normal(size=(2, 6)),
        "anchor_items": np.array([0, 2, 5]),
        "anchor_weights": np.array([0.5, 0.2, 0.3]),
        "gp_lambda": 0.25,
        "subject_sizes": np.array([4, 2]),
    }
    return Parameters(**(values | changes))  # type: ignore[arg-type]


def test_subjects_count_alike() -> None:
    balance = few().balance
    assert balance.tolist() == [0.75] * 4 + [1.5] * 2
    assert balance.mean() == 1


def test_estimate_follows_the_equations() -> None:
    parameters = few()
    found = estimate([True, False, True], parameters)
    exponent = np.clip(parameters.A * np.array(found.theta)[:, None] - parameters.B, -30, 30).sum(0)
    p = 1 / (1 + np.exp(-exponent))
    others = (0.75 * (p[1] + p[3]) + 1.5 * p[4]) / 3
    assert found.irt == pytest.approx(0.8)
    assert found.pirt == pytest.approx(0.5 * (0.75 + 0 + 1.5) / 3 + 0.5 * others)
    assert found.gpirt == pytest.approx(0.25 * found.irt + 0.75 * found.pirt)


def test_gradient() -> None:
    parameters, y, theta = few(), np.array([1.0, 0.0, 1.0]), np.array([0.3, -0.7])
    A, B = parameters.A[:, [0, 2, 5]], parameters.B[:, [0, 2, 5]]
    _, gradient = surprise(theta, y, A, B)
    for k, step in enumerate(np.eye(2) * 1e-6):
        slope = (surprise(theta + step, y, A, B)[0] - surprise(theta - step, y, A, B)[0]) / 2e-6
        assert gradient[k] == pytest.approx(slope, rel=1e-6)


def test_one_answer_per_anchor() -> None:
    with pytest.raises(InputError, match="expected 3 answers, one per anchor, found 2"):
        estimate([True, False], few())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("A", np.ones((2, 5))),
        ("B", np.ones((3, 6))),
        ("anchor_items", np.array([0, 2, 6])),
        ("anchor_items", np.array([0, 2, 2])),
        ("anchor_weights", np.array([0.5, 0.5])),
        ("subject_sizes", np.array([4, 3])),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, name: str, value: np.ndarray) -> None:
    np.savez(tmp_path / "parameters.npz", **vars(few(**{name: value})))
    with pytest.raises(InputError, match="one weight for each of the distinct anchors"):
        Parameters.load(tmp_path / "parameters.npz")


def test_files_that_are_no_parameters_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "parameters.npz"
    with pytest.raises(InputError, match="No such file"):
        Parameters.load(path)
    path.write_bytes(b"not an archive")
    with pytest.raises(InputError, match=r"expected an .npz file with plain arrays A, B, anchor_items"):
        Parameters.load(path)
    np.savez(path, **{key: value for key, value in vars(few()).items() if key != "B"})
    with pytest.raises(InputError, match="B is not a file in the archive"):
        Parameters.load(path)
    np.savez(path, **(vars(few()) | {"B": np.array([None, {}])}))
    with pytest.raises(InputError, match="allow_pickle=False"):
        Parameters.load(path)


def test_a_saved_file_is_read_back(tmp_path: Path) -> None:
    np.savez(tmp_path / "parameters.npz", **vars(few()))
    answers = [True, True, False]
    assert estimate(answers, Parameters.load(tmp_path / "parameters.npz")) == estimate(answers, few())
