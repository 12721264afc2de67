"""``inject --push-to-hub``: the hub's own client, and a hub on this machine that keeps what arrives."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from fpbench.errors import InputError, StorageError
from fpbench.runs.card import check_push, push
from tests.hub.receiving import Receiving, receiving
from tests.hub.server import files_of, use

TOKEN = "hf_of_the_owner"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # of the hub's client


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiving]:
    with receiving() as hub:
        use(hub, tmp_path / "kept", monkeypatch)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # large files by Git LFS
        yield hub


def test_every_byte_arrives_and_the_token_goes_to_the_hub_alone(hub, fingerprinted):
    check_push()
    assert push(fingerprinted, "owner/marked") == f"{hub.url}/owner/marked"
    assert [(each["name"], each["organization"], each["visibility"]) for each in hub.created] == [
        ("marked", "owner", "private")
    ]
    assert hub.files == files_of(fingerprinted)
    assert b"fpbench set of 10 fingerprints" in hub.files["README.md"]
    assert {each.token for each in hub.asked} == {f"Bearer {TOKEN}"}
    (stored,) = hub.storage.asked  # the weights, at another host
    assert stored.token is None and TOKEN.encode() not in stored.body and TOKEN not in stored.what
    assert "POST /verify" in [each.what for each in hub.asked]


@pytest.mark.parametrize("refused", ["/api/repos/create", "/signed/", "/commit/"])
def test_a_refusal_is_one_line_and_the_folder_stays(hub, fingerprinted, refused):
    before, where = files_of(fingerprinted), hub.storage if refused == "/signed/" else hub
    where.refused = refused
    with pytest.raises(StorageError, match=r"^owner/marked cannot be written on the hub \(.+\): .* stays\.$") as raised:
        push(fingerprinted, "owner/marked")
    assert "\n" not in str(raised.value) and TOKEN not in str(raised.value)
    assert files_of(fingerprinted) == before and not hub.files


def test_a_hub_out_of_reach_is_one_line(hub, fingerprinted, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match="cannot be written on the hub"):
        push(fingerprinted, "owner/marked")


def test_without_a_token_or_offline_nothing_is_begun(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(InputError, match="needs a token of yours"):
        check_push()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="may not be asked"):
        check_push()
    assert not hub.asked
