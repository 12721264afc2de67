"""Twelve servers that want to be judged otherwise: none gets a wrong verdict, and each gets a report that says why."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from fpbench.cli import main
from fpbench.fingerprints import load_fingerprints
from fpbench.fingerprints.sealing import seal
from tests.ownership.server import Server
from tests.ownership.test_endpoint import KEY
from tests.ownership.test_verify import FOREIGN, write


class Hostile(NamedTuple):
    """A server that carries the set, and what it does about it."""

    says: Any = "Zebra ran"  # to every trigger; a function is called with the number of the request, from 1
    faults: tuple[str | None, ...] = ()
    refused_from: int = 1000  # request from which all are refused
    status: int = 400
    fingerprints: str = "a"  # the system_fingerprint of each answer, the last for all that follow
    verdict: str = "no claim"
    counts: tuple[int, int, int] = (0, 8, 8)  # matches as they count, leniently, anywhere
    reason: str = "no fingerprint is left"


SERVERS = {
    "invisible": Hostile("\u200bZ\u200debra ran"),
    "quoted": Hostile("\u201eZebra\u201c"),
    "markdown": Hostile("> **Zebra**"),
    "another case": Hostile("zEBRA ran"),
    "wide letters": Hostile("\uff3a\uff45\uff42\uff52\uff41"),
    "introduced": Hostile("Answer: Zebra", counts=(0, 0, 8)),
    "another configuration": Hostile(
        fingerprints="ab", verdict="undecided", counts=(1, 1, 1), reason="at question 2 of 8 (suspect a and suspect b)"
    ),
    "refuses": Hostile(
        "Silence", refused_from=2, verdict="undecided", counts=(0, 0, 0), reason="status 400 (no): check URL"
    ),
    "moves away": Hostile(
        refused_from=2, status=307, verdict="undecided", counts=(1, 1, 1), reason="in FPBENCH_API_KEY (question 2 of 8)"
    ),
    "quotes the key and the terminal": Hostile(
        lambda number: f"\x1b[2J\u202e {KEY} \ud800 Zebra", verdict="no claim", counts=(0, 0, 8)
    ),
    "hangs": Hostile(
        faults=(None, *["hang"] * 5), verdict="undecided", counts=(1, 1, 1), reason="timed out (question 2 of 8)"
    ),
    "drips": Hostile(
        faults=(None, *["drip"] * 5),
        verdict="undecided",
        counts=(1, 1, 1),
        reason="in the middle of the answer (question 2 of 8)",
    ),
}
SLOW = ("hangs", "drips")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in SERVERS]
)
def test_a_hostile_server(
    name: str, server: Server, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    hostile = SERVERS[name]
    monkeypatch.setenv("FPBENCH_API_KEY", KEY)
    configurations: Iterator[str] = iter(hostile.fingerprints)

    def model(body: dict[str, Any]) -> tuple[str, Any]:
        server.author = server.author | {"system_fingerprint": next(configurations, hostile.fingerprints[-1])}
        return hostile.says(len(server.asked)) if callable(hostile.says) else hostile.says, None

    server.model, server.faults = model, list(hostile.faults)

    def refuse(path: str, body: dict[str, Any]) -> tuple[int, Any] | None:
        return (hostile.status, {"error": "no"}) if len(server.asked) >= hostile.refused_from else None

    server.refuse = refuse
    openings, out = tmp_path / "set.openings.json", tmp_path / "report.json"
    openings.write_text(json.dumps(seal(load_fingerprints(write(tmp_path / "set.jsonl", FOREIGN)))[1]))
    command = ["--endpoint", server.url, "--fingerprints", str(openings), "--timeout", "0.3"]
    assert main(["verify", *command, "--out", str(out)]) == (1 if hostile.verdict == "undecided" else 0)
    printed, report = capsys.readouterr(), json.loads(out.read_text())
    counted = tuple(report[each] for each in ("matched", "matched_leniently", "matched_anywhere"))
    assert (report["verdict"], counted) == (hostile.verdict, hostile.counts) and hostile.reason in report["reason"]
    hidden = counted[2] > counted[0]
    assert printed.out.startswith("Matches may be hidden" if hidden else "UNDECIDED") and "Traceback" not in printed.err
    assert "no number of fingerprints would be enough" not in printed.out
    if hidden:
        assert "{} of the 8 responses begin with a target; {} do where".format(*counted) in printed.out
    assert "\x1b" not in printed.out and KEY not in printed.out + printed.err + out.read_text()
    if name in ("quoted", "refuses"):  # an audit says the same, first
        server.asked.clear()
        assert main(["audit", *command, "--out", str(tmp_path / "audit")]) == (0 if hidden else 1)
        said = capsys.readouterr().out
        assert said.startswith("Matches may be hidden" if hidden else "Whether the suspect") and hostile.reason in str(
            json.loads((tmp_path / "audit" / "verification.json").read_text())["reason"]
        )


def test_there_are_twelve_and_ten_are_quick() -> None:
    assert len(SERVERS) == 12 and len(SLOW) == 2
