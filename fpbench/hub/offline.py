"""No network: what ``--offline`` means for the libraries that ask a hub, for as long as a block lasts."""

import contextlib
import importlib
import os
from collections.abc import Iterator

VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
# Read once when these are imported, which another library may have done long ago.
SWITCHES = (
    ("huggingface_hub.constants", "HF_HUB_OFFLINE"),
    ("datasets.config", "HF_HUB_OFFLINE"),
    ("datasets.config", "HF_DATASETS_OFFLINE"),
)


@contextlib.contextmanager
def offline(wanted: bool) -> Iterator[None]:
    """Ask no hub inside the block, if that is wanted; else leave everything as it is."""
    if not wanted:
        yield
        return
    kept = {name: os.environ.get(name) for name in VARIABLES}
    os.environ |= dict.fromkeys(VARIABLES, "1")
    modules = [(importlib.import_module(name), switch) for name, switch in SWITCHES]
    before = [getattr(module, switch) for module, switch in modules]
    try:
        for module, switch in modules:
            setattr(module, switch, True)
        yield
    finally:
        for (module, switch), value in zip(modules, before, strict=True):
            setattr(module, switch, value)
        for name, each in kept.items():
            os.environ.pop(name) if each is None else os.environ.update({name: each})
