"""docs/cluster.md: what workers are told and ask for, and when a cell is given up."""

import tomllib

from fpbench.runs.profile import Resources, load_profile
from fpbench.runs.ray import ENVIRONMENT, LOSSES, LOST
from tests.docs.markdown import blocks, names, read

DOCUMENT = read("cluster.md")
FLAT = " ".join(DOCUMENT.split())


def test_workers_are_told_the_variables_that_are_listed():
    told = FLAT.partition("Workers are told")[2].partition("the offline switches")[0]
    assert set(names(told)) == {name for name in ENVIRONMENT if not name.endswith("_OFFLINE")}
    assert not [name for name in ENVIRONMENT if "TOKEN" in name] and "but no token" in FLAT


def test_the_resources_of_its_profile_are_understood():
    (text,) = blocks(DOCUMENT, "toml")
    given = tomllib.loads(text)
    decoding = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    models = [model | decoding for model in given.pop("models")]
    micro = load_profile("micro").model_dump() | given | {"models": models}
    profile = type(load_profile("micro"))(**micro)
    assert profile.threads == 4 and profile.resources == Resources(gpus=1, memory_gb=24)
    assert profile.models[0].resources == Resources(gpus=1, memory_gb=80)


def test_a_cell_is_given_up_after_three_losses():
    assert "whose worker was lost three times is recorded as failed" in FLAT
    assert LOSSES == 3 and "three times" in LOST
