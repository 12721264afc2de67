"""The field's methods that stand below submissions/, as classes that the tests register for a while."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fpbench.submissions.manifest import MethodManifest, read_manifest
from tests.conftest import ROOT, registered_for_now

NAMES = sorted(path.parent.name for path in (ROOT / "submissions").glob("[a-z]*/submission.toml"))


@contextmanager
def adapter(name: str) -> Iterator[dict[str, object]]:
    """Register the method of a submission, and yield its hyper-parameters for small models."""
    folder = ROOT / "submissions" / name
    specification = importlib.util.spec_from_file_location(f"adapter_of_{name}", folder / "adapter.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    with registered_for_now():
        sys.modules[module.__name__] = module  # pydantic looks types up there
        specification.loader.exec_module(module)
        try:
            yield read_manifest(Path(folder), MethodManifest).hyperparameters["small"]
        finally:
            del sys.modules[module.__name__]
