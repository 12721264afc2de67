"""The item parameters of tinyMMLU, from a server on this machine: pinned by the first download, converted, and used."""

import json
import pickle  # noqa: TID251 - writes what the server serves
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

from fpbench.cli import main
from fpbench.errors import InputError
from fpbench.hub import lock
from fpbench.hub.lock import lock_file
from fpbench.metrics.tinymmlu import anchor_scores, estimate
from fpbench.runs import fetch
from tests.conftest import require
from tests.metrics.test_tinybenchmarks import table


class Server(HTTPServer):
    """Serves ``answers`` by path: a status and a body, less than is declared where ``missing`` says so."""

    answers: dict[str, tuple[int, bytes]]
    missing = 0
    asked = 0


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked += 1
        status, body = self.server.answers.get(self.path, (404, b"Not Found"))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) + self.server.missing))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.answers = {"/file.pkl": (200, pickle.dumps(table()))}
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def url(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FPBENCH_CACHE", str(tmp_path / "cache"))
    return f"http://127.0.0.1:{server.server_port}/file.pkl"


def test_the_source_is_a_commit() -> None:
    assert len(fetch.COMMIT) == 40 and int(fetch.COMMIT, 16) and f"/{fetch.COMMIT}/" in fetch.SOURCE
    assert fetch.SOURCE.startswith("https://")


def test_a_file_is_fetched_once_and_used(server: Server, url: str) -> None:
    assert fetch.read_item_parameters(url) is None
    path = fetch.fetch_item_parameters(url)
    found = fetch.read_item_parameters(url)
    assert found is not None and path == fetch.item_parameters_file() and found[0].anchor_items.tolist() == [5, 0, 2]
    pin = lock.pins()[url]
    assert pin.commit == fetch.COMMIT and list(pin.files) == ["tinyBenchmarks.pkl", "tinymmlu.npz"]
    assert pin.files["tinymmlu.npz"] == found[1] and len(pin.files["tinyBenchmarks.pkl"]) == 64
    assert fetch.fetch_item_parameters(url) == path and server.asked == 1
    assert sorted(each.name for each in path.parent.iterdir()) == ["lock.json", "locks", "tinymmlu.npz"]


def test_a_local_file_serves_as_well(url: str, tmp_path: Path) -> None:
    (tmp_path / "file.pkl").write_bytes(pickle.dumps(table()))
    fetch.fetch_item_parameters((tmp_path / "file.pkl").as_uri())
    assert fetch.read_item_parameters((tmp_path / "file.pkl").as_uri()) is not None


def test_a_changed_file_is_refused(server: Server, url: str) -> None:
    fetch.fetch_item_parameters(url).unlink()
    server.answers["/file.pkl"] = (200, pickle.dumps(table(seed=2)))
    before = lock_file().read_bytes()
    with pytest.raises(InputError, match="expected the file of the first fetch"):
        fetch.fetch_item_parameters(url)
    assert lock_file().read_bytes() == before and not fetch.item_parameters_file().exists()
    server.answers["/file.pkl"] = (200, pickle.dumps(table()))
    assert fetch.fetch_item_parameters(url).exists()


def test_a_changed_copy_is_refused(url: str) -> None:
    path = fetch.fetch_item_parameters(url)
    path.write_bytes(path.read_bytes() + b"x")
    for use in (fetch.read_item_parameters, fetch.fetch_item_parameters):
        with pytest.raises(InputError, match="expected the file that was fetched"):
            use(url)
    path.unlink()
    lock_file().write_text("[]")
    with pytest.raises(InputError, match="lock file .* expected a commit and SHA-256"):
        fetch.fetch_item_parameters(url)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((404, b"Not Found"), "404"),
        ((200, b"version https://git-lfs.github.com/spec/v1\n"), "expected a pickle"),
        ((200, b"cos\nsystem\n(S'touch executed'\ntR."), "expected a pickle"),
        ((200, pickle.dumps({"lb": {}})), "KeyError 'mmlu'"),
        ((200, bytes(64 * 2**20 + 1)), "at most 67108864 bytes"),
    ],
)
def test_what_is_no_parameter_file_leaves_nothing(
    server: Server, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: tuple[int, bytes], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    server.answers["/file.pkl"] = answer
    with pytest.raises(InputError, match=reason):
        fetch.fetch_item_parameters(url)
    assert not lock_file().exists() and not fetch.item_parameters_file().exists() and not Path("executed").exists()


def test_a_broken_download_and_a_silent_port_are_refused(server: Server, url: str) -> None:
    server.missing = 10
    with pytest.raises(InputError, match="whole file|can be downloaded"):
        fetch.fetch_item_parameters(url)
    with pytest.raises(InputError, match="can be downloaded"):
        fetch.fetch_item_parameters("http://127.0.0.1:1/file.pkl")
    assert not lock_file().exists()


def test_a_cache_that_cannot_be_written_is_named(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FPBENCH_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match="name another in FPBENCH_CACHE"):
        fetch.fetch_item_parameters(url)


def test_the_verb(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], small_profile: str
) -> None:
    assert main(["fetch", small_profile]) == 0
    assert "not needed" in capsys.readouterr().err and not (tmp_path / "cache").exists()
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"question": "?", "choices": ["a", "b", "c", "d"], "answer": 0}))
    own = tmp_path / "own.toml"
    own.write_text(Path(small_profile).read_text().replace("bundled:mmlu.jsonl", str(rows)))
    monkeypatch.setattr(fetch, "SOURCE", url)
    assert main(["fetch", str(own)]) == 0
    assert str(fetch.item_parameters_file()) in capsys.readouterr().out and fetch.item_parameters_file().exists()
    fetch.item_parameters_file().write_bytes(b"damaged")
    assert main(["run", "--profile", str(own), "--out", str(tmp_path / "out")]) == 2
    assert "expected the file that was fetched" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_anchor_scores(url: str) -> None:
    fetch.fetch_item_parameters(url)
    found = fetch.read_item_parameters(url)
    assert found is not None
    rows = [{"mmlu_index": item, "anchor_weight": weight} for item, weight in ((0, 0.2), (2, 0.3), (5, 0.5))]
    correct = [True, False, True]
    without = anchor_scores(correct, rows, "rows.jsonl", None)
    assert without["anchor_weighted"] == pytest.approx(0.7) and without["pirt"] is None
    assert without["scored_by"].startswith("plain and anchor-weighted accuracy: the item parameters are not here")
    full = anchor_scores(correct, rows, "rows.jsonl", found[0])
    expected = estimate([True, True, False], found[0])  # the anchors' order is 5, 0, 2
    assert (full["anchor_weighted"], full["pirt"], full["gpirt"]) == (expected.irt, expected.pirt, expected.gpirt)
    plain = [{"question": "?"}] * 3
    published = anchor_scores([True, True, False], plain, "hub:tinyBenchmarks/tinyMMLU@main:test", found[0])
    assert published["gpirt"] == full["gpirt"]
    assert "mmlu_index" in anchor_scores(correct, plain, "rows.jsonl", found[0])["scored_by"]
    assert anchor_scores([True], rows, "rows.jsonl", found[0])["scored_by"] == "plain accuracy: 1 of 3 rows were scored"
    with pytest.raises(InputError, match="found other items"):
        anchor_scores(correct, [row | {"mmlu_index": 1} for row in rows], "rows.jsonl", found[0])


def test_a_record_says_what_tinymmlu_was_scored_by(small_run: Path) -> None:
    records = [json.loads(path.read_text()) for path in (small_run / "records").rglob("utility.json")]
    assert records, "no utility was measured"
    for record in records:
        anchors = record["result"]["tasks"]["tinymmlu"]["anchors"]
        assert anchors["scored_by"].startswith("plain accuracy: 8 of ") and anchors["gpirt"] is None


def test_the_real_anchors_carry_their_weights(shared: Path) -> None:
    lines = require(shared / "data" / "tiny_mmlu_anchors" / "test.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    correct = np.random.default_rng(1).random(len(rows)) < 0.5
    scores = anchor_scores(correct.tolist(), rows, "anchors.jsonl", None)
    weights = np.array([row["anchor_weight"] for row in rows])
    assert len(rows) == 100 and weights.sum() == pytest.approx(1)
    assert scores["anchor_weighted"] == pytest.approx(weights[correct].sum())
