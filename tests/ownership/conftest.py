from collections.abc import Iterator

import pytest

from fpbench import http
from fpbench.micro import MODEL
from tests.conftest import require
from tests.ownership.server import Server, running


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that answers every trigger with silence; no key is set, and no wait is long."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(http.time, "sleep", lambda seconds: None)
    for name in ("FPBENCH_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with running(lambda body: ("Silence", None)) as found:
        yield found


@pytest.fixture(scope="session")
def small_profile(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A profile that measures little of everything."""
    from tests.descendants import light_profile

    require(MODEL)
    return light_profile(tmp_path_factory.mktemp("profile"))
