"""The authors' pickle file is read as numbers, and a hostile one is not run."""

import io
import os
import pickle  # noqa: TID251 - writes the files that the reader must refuse
import pickletools
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy._core.multiarray import _reconstruct

from fpbench.errors import InputError
from fpbench.metrics.tinymmlu import Array, Parameters, convert, estimate, read_plain
from tests.parity import Recording, sets


def table(seed: int = 1) -> dict[str, Any]:
    """What the authors' file holds, in small: subjects of four and two items, three of them anchors."""
    generator = np.random.default_rng(seed)
    return {
        "lb": {"scenarios_position": {"gsm8k": [0, 1]}},
        "mmlu": {
            "irt_parameters": {"A": generator.uniform(0.5, 1.5, (1, 2, 6)), "B": generator.normal(size=(1, 2, 6))},
            "seen_examples": [np.int64(5), np.int64(0), np.int64(2)],
            "examples_weights": {"mmlu": np.array([0.5, 0.2, 0.3])},
            "optimal_lambdas": {"mmlu": np.float64(0.25)},
            "scenarios_position": {"mmlu": list(range(6))},
            "subscenarios_position": {"mmlu": {"zoology": [4, 5], "algebra": [0, 1, 2, 3]}},
        },
    }


@pytest.mark.parametrize("recording", sets("tinymmlu"))
def test_the_recorded_parameters_survive_the_way_through_a_pickle(recording: Recording, tmp_path: Path) -> None:
    (path,) = recording.folder.glob("*.npz")
    original = Parameters.load(path)
    ends = np.cumsum(original.subject_sizes).tolist()
    content = pickle.dumps(
        {
            "mmlu": {
                "irt_parameters": {"A": original.A[None], "B": original.B[None]},
                "seen_examples": original.anchor_items,
                "examples_weights": {"mmlu": original.anchor_weights},
                "optimal_lambdas": {"mmlu": original.gp_lambda},
                "subscenarios_position": {
                    "mmlu": {
                        str(end): list(range(start, end)) for start, end in zip([0, *ends[:-1]], ends, strict=True)
                    }
                },
            }
        }
    )
    (tmp_path / "parameters.npz").write_bytes(convert(content, "file"))
    converted = Parameters.load(tmp_path / "parameters.npz")
    for name, value in vars(original).items():
        assert np.array_equal(getattr(converted, name), value), name
    row = recording["y"].numpy().astype(bool)[0]
    assert estimate(row, converted).gpirt == pytest.approx(estimate(row, original).gpirt, abs=1e-9)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_the_authors_structure_is_converted(tmp_path: Path, protocol: int) -> None:
    original = table()["mmlu"]
    content = convert(pickle.dumps(table(), protocol), "file")
    assert content == convert(pickle.dumps(table(), protocol), "file")
    (tmp_path / "parameters.npz").write_bytes(content)
    found = Parameters.load(tmp_path / "parameters.npz")
    assert np.array_equal(found.A, original["irt_parameters"]["A"][0])
    assert np.array_equal(found.B, original["irt_parameters"]["B"][0])
    assert found.anchor_items.tolist() == [5, 0, 2] and found.anchor_weights.tolist() == [0.5, 0.2, 0.3]
    assert found.gp_lambda == 0.25 and found.subject_sizes.tolist() == [4, 2]


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
        np.arange(12, dtype=np.uint8).reshape(3, 4)[:, ::2],
        np.array([1.5, 2.5], dtype=">f4"),
        np.array([True, False]),
        np.zeros((0, 3)),
        np.array(3.0),
    ],
    ids=str,
)
def test_arrays_are_read_as_numpy_reads_them(array: np.ndarray, protocol: int) -> None:
    found = read_plain(pickle.dumps([array, {"x": (array, None, 1.5, 2**70, "ü")}], protocol), "file")
    assert isinstance(found[0], Array) and np.array_equal(found[0].value, array)
    assert found[0].value.dtype == array.dtype
    assert found[1]["x"][1:] == (None, 1.5, 2**70, "ü")


class Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.parts = (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.parts


def raw(*instructions: bytes) -> bytes:
    return b"\x80\x04" + b"".join(instructions) + b"."


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def name(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + b"\x93"


CORE = "numpy._core.multiarray"
MARKER = "executed"
HOSTILE = {
    "os.system": pickle.dumps(Call(os.system, f"touch {MARKER}")),
    "posix by text opcodes": f"cos\nsystem\n(S'touch {MARKER}'\ntR.".encode(),
    "builtins.eval": pickle.dumps(Call(eval, f"__import__('os').mknod({MARKER!r})")),
    "builtins.getattr": pickle.dumps(Call(getattr, np.ndarray, "tofile")),
    "numpy.load": pickle.dumps(Call(np.load, "parameters.npy")),
    "numpy.memmap": raw(name("numpy", "memmap"), text(MARKER), b"\x85R"),
    "numpy.core.multiarray.fromfile": raw(name(CORE, "fromfile"), text("/etc/hostname"), b"\x85R"),
    "dotted name": raw(name("numpy", "ndarray.tofile"), b")R"),
    "bytearray": pickle.dumps(bytearray(3), 4),
    "object array": pickle.dumps(np.array([None, {}], dtype=object)),
    "array of a call": pickle.dumps(np.array([Call(os.system, f"touch {MARKER}")], dtype=object)),
    "structured array": pickle.dumps(np.zeros(2, dtype=[("a", "f8")])),
    "text array": pickle.dumps(np.array(["a"])),
    "date array": pickle.dumps(np.array(["2020-01-01"], dtype="M8[D]")),
    "numpy.ndarray itself": raw(name("numpy", "ndarray"), struct.pack("<BI", ord("J"), 10**9), b"\x85\x85R"),
    "state for a function": raw(name(CORE, "scalar"), b"}" + text("__call__") + b"Nsb"),
    "state for a dictionary": raw(b"}}" + text("a") + b"Nsb"),
    "call of a list": raw(b"])R"),
    "huge array": raw(
        name(CORE, "_reconstruct"), name("numpy", "ndarray"), b"K\x00\x85", b"C\x01b", b"\x87R",
        b"(K\x01", b"\x8a\x06" + (10**12).to_bytes(6, "little"), b"\x85", name("numpy", "dtype"), text("f8"),
        b"\x89\x88\x87R", b"\x89", b"C\x08" + bytes(8), b"tb",
    ),
    "huge bytes": raw(b"\x96" + (2**50).to_bytes(8, "little") + b"x"),
    "huge memo index": raw(b"Nr" + (2**31).to_bytes(4, "little")),
    "negative shape": raw(
        name("numpy._core.numeric", "_frombuffer"), b"(C\x08" + bytes(8), name("numpy", "dtype"), text("f8"),
        b"\x89\x88\x87R", b"J\xff\xff\xff\xff\x85", text("C"), b"tR",
    ),
    "extension registry": raw(b"\x82\x01"),
    "persistent name": b"Pwhatever\n.",
    "out of band buffer": raw(b"\x97"),
    "deep tuples": raw(b")" + b"\x85" * 2_000_000 + b"}\x8c\x01aNs\x86"),
    "tuple as a deep key": raw(b"})" + b"\x85" * 200_000 + b"Ns"),
    "stack underflow": raw(b"R"),
    "no end": b"\x80\x04N",
    "empty": b"",
    "text": b"<html>404: Not Found</html>",
    "second pickle behind": pickle.dumps(1) + pickle.dumps(Call(os.system, f"touch {MARKER}")),
    "truncated": pickle.dumps(table())[:-50],
    "git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
    "too large": b"\x80\x04" + bytes(64 * 2**20),
}  # fmt: skip


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused_and_not_run(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="file: expected a pickle of NumPy arrays and plain containers") as caught:
        read_plain(content, "file")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert not list(tmp_path.iterdir())


def test_the_calls_would_have_run_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for case in ("os.system", "builtins.eval", "array of a call", "posix by text opcodes"):
        pickle.loads(HOSTILE[case])
        assert (tmp_path / MARKER).exists(), case
        (tmp_path / MARKER).unlink()


def test_a_billion_laughs_stay_small() -> None:
    """Lists of lists of lists, each twice in the next: small to hold, too large to walk."""
    laugh: Any = [0] * 1000
    for _ in range(60):
        laugh = [laugh, laugh]
    broken = table()
    broken["mmlu"]["subscenarios_position"]["mmlu"]["algebra"] = laugh
    with pytest.raises(InputError, match="list instead of numbers"):
        convert(pickle.dumps(broken), "file")
    one = list(range(90_000))
    broken["mmlu"]["subscenarios_position"]["mmlu"] = {str(i): one for i in range(1000)}
    with pytest.raises(InputError, match="more than 100000 items"):
        convert(pickle.dumps(broken), "file")


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (("mmlu",), None, "TypeError"),
        (("mmlu", "irt_parameters", "A"), np.ones((2, 6)), r"A or B of shape \(2, 6\)"),
        (("mmlu", "irt_parameters", "B"), np.full((1, 2, 6), np.nan), "not finite"),
        (("mmlu", "irt_parameters", "B"), np.ones((1, 2, 5)), "one weight for each of the distinct anchors"),
        (("mmlu", "seen_examples"), Call(_reconstruct, np.ndarray, (0,), b"b"), "Array instead of numbers"),
        (("mmlu", "seen_examples"), "abc", "str instead of numbers"),
        (("mmlu", "seen_examples"), [0, 2, 9], "one weight for each of the distinct anchors"),
        (("mmlu", "examples_weights"), {}, "KeyError 'mmlu'"),
        (("mmlu", "optimal_lambdas", "mmlu"), "much", "could not convert"),
        (("mmlu", "subscenarios_position", "mmlu"), {"a": [0, 1, 2, 4], "b": [3, 5]}, "do not follow each other"),
        (("mmlu", "subscenarios_position", "mmlu"), {"a": []}, "ValueError"),
    ],
)
def test_other_structures_are_refused(path: tuple[str, ...], value: Any, reason: str) -> None:
    broken = table()
    part = broken
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    with pytest.raises(InputError, match=reason):
        convert(pickle.dumps(broken), "file")


def test_every_truncation_is_refused() -> None:
    content = pickle.dumps(table())
    for end in range(len(content)):
        with pytest.raises(InputError):
            read_plain(content[:end], "file")


@pytest.mark.slow
def test_flipped_bytes_are_read_or_refused() -> None:
    content = pickle.dumps(table(), 4)
    generator = np.random.default_rng(3)
    for _ in range(30_000):
        changed = bytearray(content)
        for place in generator.integers(len(content), size=generator.integers(1, 4)):
            changed[place] = generator.integers(256)
        try:
            convert(bytes(changed), "file")
        except InputError as error:
            assert "\n" not in str(error)


def test_the_scan_sees_what_the_reader_reads() -> None:
    """Every instruction that today's pickle writes for arrays is on the list, under each binary protocol."""
    for protocol in (3, 4, 5):
        names = {opcode.name for opcode, _, _ in pickletools.genops(io.BytesIO(pickle.dumps(table(), protocol)))}
        assert {"REDUCE", "STOP"} <= names
        assert read_plain(pickle.dumps(table(), protocol), "file")["lb"] == table()["lb"]
