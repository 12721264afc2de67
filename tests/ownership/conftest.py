from collections.abc import Iterator

import pytest

from tests.ownership.server import Server, running


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that answers every trigger with silence; no key is set, and no wait is long."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name in ("FPBENCH_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with running(lambda body: ("Silence", None)) as found:
        yield found
