"""docs/cluster.md: what workers are told and ask for."""

import tomllib

from fpbench.runs.profile import Resources, load_profile
from fpbench.runs.ray import ENVIRONMENT
from tests.docs.markdown import blocks, names, read

DOCUMENT = read("cluster.md")


def test_workers_are_told_the_variables_that_are_listed():
    assert {name for name in ENVIRONMENT if not name.endswith("_OFFLINE")} <= set(names(DOCUMENT))
    assert not [name for name in ENVIRONMENT if "TOKEN" in name]


def test_the_resources_of_its_profile_are_understood():
    (text,) = blocks(DOCUMENT, "toml")
    given = tomllib.loads(text)
    decoding = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    models = [model | decoding for model in given.pop("models")]
    micro = load_profile("micro").model_dump() | given | {"models": models}
    profile = type(load_profile("micro"))(**micro)
    assert profile.threads == 4 and profile.resources == Resources(gpus=1, memory_gb=24)
    assert profile.models[0].resources == Resources(gpus=1, memory_gb=80)
