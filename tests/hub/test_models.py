"""Models of a hub on this machine, by the hub's own client."""

import hashlib
from pathlib import Path

import pytest

from fpbench.errors import InputError
from fpbench.hub import download, lock
from fpbench.micro import MODEL
from fpbench.models.checkpoints import HUB_FILES, resolve
from fpbench.records.pins import add_pin
from tests.hub.server import Hub

FILES = {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"[]"}


def test_a_checkpoint_is_the_top_of_a_repository_without_other_formats_of_its_weights(hub: Hub) -> None:
    others = [
        "README.md",
        "consolidated.safetensors",
        "original/model.safetensors",
        "onnx/config.json",
        "pytorch_model.bin",
    ]
    hub.push("acme/tiny", FILES | dict.fromkeys(others, b"other"))
    folder, pin = download.fetch("acme/tiny", None, HUB_FILES)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES) == list(pin.files)
    assert pin.files == {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    # What nothing pins is the same checkpoint.
    assert download.snapshot("acme/tiny", None, HUB_FILES) == folder
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)


@pytest.mark.parametrize("revision", [None, "main", "v1"])
def test_a_branch_is_pinned_and_a_later_commit_on_it_not_read(hub: Hub, revision: str | None) -> None:
    first = hub.push("acme/tiny", FILES, revision or "main")
    folder, pin = download.fetch("acme/tiny", revision, HUB_FILES)
    assert pin.commit == first == download.commit_of(folder)
    assert download.commit_of(MODEL) is None
    add_pin(lock.model_name("acme/tiny", revision), pin)
    second = hub.push("acme/tiny", FILES | {"model.safetensors": b"other"}, revision or "main")
    hub.asked.clear()
    assert resolve("acme/tiny", revision=revision) == folder and hub.asked == []
    assert resolve("acme/tiny", revision=second).name == second  # whoever names a commit has it


def test_without_a_pin_the_branch_is_read(hub: Hub) -> None:
    hub.push("acme/tiny", FILES)
    resolve("acme/tiny")
    second = hub.push("acme/tiny", FILES | {"model.safetensors": b"other"})
    assert resolve("acme/tiny").name == second


def test_what_is_missing_of_a_pinned_model_comes_from_the_same_commit(hub: Hub) -> None:
    first = hub.push("acme/tiny", FILES)
    folder, pin = download.fetch("acme/tiny", None, HUB_FILES)
    hub.push("acme/tiny", FILES | {"model.safetensors": b"other"})
    (folder / "model.safetensors").resolve().unlink()
    (folder / "model.safetensors").unlink()
    hub.asked.clear()
    assert (download.pinned("acme/tiny", pin) / "model.safetensors").read_bytes() == b"weights"
    assert hub.downloads() == [f"acme/tiny/resolve/{first}/model.safetensors"]


def test_a_pinned_model_that_changed_on_the_disk_is_refused_and_had_again_once_deleted(hub: Hub) -> None:
    hub.push("acme/tiny", FILES)
    folder, pin = download.fetch("acme/tiny", None, HUB_FILES)
    blob = (folder / "model.safetensors").resolve()
    blob.write_bytes(b"changed")
    with pytest.raises(InputError, match=f"model 'acme/tiny': expected .*; delete {blob} and run"):
        download.pinned("acme/tiny", pin)
    blob.unlink()
    assert (download.pinned("acme/tiny", pin) / "model.safetensors").read_bytes() == b"weights"


def test_a_commit_whose_content_changed_on_the_hub_is_refused(hub: Hub) -> None:
    first = hub.push("acme/tiny", FILES)
    folder, pin = download.fetch("acme/tiny", None, HUB_FILES)
    (folder / "model.safetensors").resolve().unlink()
    hub.repositories["acme/tiny"].commits[first] = FILES | {"model.safetensors": b"changed"}
    with pytest.raises(InputError, match="expected the file that was first fetched"):
        download.pinned("acme/tiny", pin)


def test_a_repository_without_a_checkpoint_is_refused(hub: Hub) -> None:
    hub.push("acme/tiny", {"README.md": b"soon"})
    with pytest.raises(InputError, match="expected a checkpoint on the hub"):
        download.fetch("acme/tiny", None, HUB_FILES)


def test_a_model_that_is_out_of_reach_is_read_as_it_was(hub: Hub) -> None:
    hub.push("acme/tiny", FILES)
    folder: Path = resolve("acme/tiny")
    hub.stop()
    assert resolve("acme/tiny") == folder
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="model 'acme/tiny' cannot be had"):
        resolve("acme/tiny")
