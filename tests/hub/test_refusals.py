"""What the user is told when something cannot be had."""

import pytest

from fpbench.errors import InputError
from fpbench.hub import download
from fpbench.hub.download import HubSource, check_access
from fpbench.models.checkpoints import HUB_FILES, resolve
from tests.hub.server import TOKEN, Hub

FILES = {"config.json": b"{}", "model.safetensors": b"weights"}
ROWS = {"train.jsonl": b'{"text": "x"}\n'}
SOURCE = HubSource("acme/rows", None, "main", "train")
PINNED = HubSource("acme/rows", None, "0" * 40, "train")


def model_is_refused() -> str:
    """What every way to a model says; all say the same."""
    lines = set()
    for way in (
        lambda: download.fetch("acme/tiny", None, HUB_FILES),
        lambda: resolve("acme/tiny"),
        lambda: check_access(download.wanted_model("acme/tiny")),
    ):
        with pytest.raises(InputError) as caught:
            way()
        lines.add(str(caught.value))
    (line,) = lines
    assert "\n" not in line and line.startswith("model 'acme/tiny'")
    return line


def rows_are_refused(source: HubSource = SOURCE) -> str:
    with pytest.raises(InputError) as caught:
        download.load_rows(source, download.dataset_commit(source))
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"data source {str(source)!r}")
    return str(caught.value)


def test_a_gated_repository_names_the_licence_page_and_the_variable(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.push("acme/tiny", FILES, gated=True)
    hub.push("datasets/acme/rows", ROWS, gated=True)
    for token, found in (("", "no token"), ("hf_of_somebody_else", "a token that may not read it")):
        monkeypatch.setenv("HF_TOKEN", token)
        for line, page in ((model_is_refused(), "acme/tiny"), (rows_are_refused(), "datasets/acme/rows")):
            assert f"is gated: expected the token of an account that accepted its licence, found {found}" in line
            assert f"accept it at {hub.url}/{page} and set HF_TOKEN" in line
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert resolve("acme/tiny").is_dir()
    assert download.load_rows(SOURCE, download.dataset_commit(SOURCE))[:] == {"text": ["x"]}


def test_what_is_not_there_or_private(hub: Hub) -> None:
    for line, page in ((model_is_refused(), "acme/tiny"), (rows_are_refused(), "datasets/acme/rows")):
        assert f"expected a repository at {hub.url}/{page}, found none that may be read (401)" in line
        assert "HF_TOKEN" in line


def test_a_revision_that_is_not_there(hub: Hub) -> None:
    hub.push("acme/tiny", FILES)
    hub.push("datasets/acme/rows", ROWS)
    with pytest.raises(InputError, match=f"expected a revision .* found none at {hub.url}.*/v9; choose"):
        download.fetch("acme/tiny", "v9", HUB_FILES)
    with pytest.raises(InputError, match="expected a revision that the hub has"):
        resolve("acme/tiny", revision="v9")
    assert "expected a revision that the hub has" in rows_are_refused(HubSource("acme/rows", None, "v9", "train"))


def test_a_hub_out_of_reach(hub: Hub) -> None:
    hub.stop()
    for line in (model_is_refused(), rows_are_refused()):
        assert (
            f"cannot be had from {hub.url} (" in line and "refused" in line and "check the name, the connection" in line
        )


def test_a_hub_that_may_not_be_asked(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    for line in (model_is_refused(), rows_are_refused()):
        assert "the hub may not be asked (offline): run `fpbench fetch PROFILE` while online" in line
    assert hub.asked == []


@pytest.mark.parametrize(
    ("files", "source", "reason"),
    [
        (ROWS, HubSource("acme/rows", None, "main", "test"), 'Unknown split "test"'),
        (ROWS, HubSource("acme/rows", "other", "main", "train"), "'other' not found"),
        ({"train.jsonl": b"no JSON"}, SOURCE, "Unexpected character"),
        ({"code.py": b"x = 1"}, SOURCE, "data"),
        (ROWS | {"rows.py": b"x = 1"}, SOURCE, "scripts are no longer supported"),
    ],
)
def test_a_data_set_that_cannot_be_read_says_why(
    hub: Hub, files: dict[str, bytes], source: HubSource, reason: str
) -> None:
    hub.push("datasets/acme/rows", files)
    line = rows_are_refused(source)
    assert "cannot be had" in line and reason in line
