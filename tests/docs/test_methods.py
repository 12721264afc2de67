"""docs/methods.md: whatever refers to it leads somewhere, and what it names is in the code."""

import importlib
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fpbench.methods.hyperparameters import FAMILIES, defaults
from fpbench.registry import METHODS, MODIFICATIONS
from tests.conftest import ROOT
from tests.docs.markdown import names, read

DOCUMENT = read("methods.md")
HEADING = re.compile(r"^#{2,3} (\d+(?:\.\d+)?) (.+)$", flags=re.M)
TITLES = dict(HEADING.findall(DOCUMENT))
SECTIONS = dict(zip(TITLES, HEADING.split(DOCUMENT)[3::3], strict=True))
OF_METHODS = [number for number in SECTIONS if number.startswith("2.")]

FOLDERS = ("docs", "fpbench", "leaderboard", "submissions", "tasks", "tests")
SUFFIXES = {".md", ".py", ".toml", ".yaml", ".yml"}


@cache
def files() -> dict[str, str]:
    """Every text of the repository but this file, with line breaks and signs of comments as spaces."""
    paths = [*ROOT.glob("*.*"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))]
    return {
        str(path.relative_to(ROOT)): re.sub(r"\s*\n\s*(?:#+ )?", " ", path.read_text(encoding="utf-8"))
        for path in paths
        if path.suffix in SUFFIXES and path != Path(__file__).resolve() and path.is_file()
    }


def test_sections_that_the_repository_refers_to_exist():
    references = [
        each for text in files().values() for each in re.findall(r"docs/methods\.md ((?:§[\d.]*\d(?:, )?)+)", text)
    ]
    assert len(references) > 35
    assert {number for each in references for number in re.findall(r"[\d.]*\d", each)} <= SECTIONS.keys()


def section_of(method: str) -> str:
    (found,) = [number for number in OF_METHODS if TITLES[number].lower() == method]
    return found


def part(section: str, name: str) -> str:
    """The point of a section's list that begins with a name, flattened."""
    (found,) = re.findall(rf"^- \*\*{name}\.\*\*(.*?)(?=^- |^$|\Z)", SECTIONS[section], flags=re.M | re.S)
    return " ".join(found.split())


@pytest.mark.parametrize("method", METHODS.own)
def test_every_method_has_a_section_that_names_its_code_and_settings(method: str):
    section = section_of(method)
    code = METHODS.get(method)
    assert f"{code.__module__.replace('.', '/')}.py:{code.__qualname__}" in names(part(section, "Code"))
    named = set(names(part(section, "Hyper-parameters")))
    for other in re.findall(r"§(\d\.\d)", part(section, "Hyper-parameters")):
        named |= set(names(part(other, "Hyper-parameters")))
    fields = set(METHODS.get(method).Config.model_fields)
    assert fields <= named
    assert {key for family in (*FAMILIES.values(), "small") for key in defaults(method, family)} <= fields


def test_there_is_no_section_of_a_method_that_is_not_there():
    assert sorted(TITLES[number].lower() for number in OF_METHODS) == sorted(METHODS.own)


@pytest.mark.parametrize(("section", "name"), [("3.1", "finetune_math"), ("3.2", "fsft_alpaca"), ("3.3", "ria30")])
def test_settings_of_modifications_are_named(section: str, name: str):
    named = set(names(part(section, "Settings")))
    named |= set(names(part("3.1", "Settings"))) if "§3.1" in part(section, "Settings") else set()
    assert set(MODIFICATIONS.get(name).Config.model_fields) <= named


def code_names() -> Iterator[tuple[str, str]]:
    return (tuple(each) for each in re.findall(r"`(fpbench/[\w/]+\.py):([\w.]+)`", " ".join(DOCUMENT.split())))  # type: ignore[misc]


def test_places_in_the_code_exist():
    places = list(code_names())
    assert len(places) > 30
    for path, name in places:
        found: Any = importlib.import_module(path.removesuffix(".py").replace("/", "."))
        for each in name.split("."):
            found = getattr(found, each)
    for file in re.findall(r"`(\w+\.py)`", DOCUMENT):
        assert (ROOT / "fpbench" / "methods" / file).is_file(), file


def test_names_are_those_of_the_code():
    """Whatever stands between backticks is a word of the package's code or of its tables of settings."""
    code = " ".join(text for name, text in files().items() if name.startswith("fpbench/"))
    words = {span for span in re.findall(r"`\"?(\w+)\"?(?: = [^`]+)?`", DOCUMENT) if not span.isupper()}
    assert len(words) > 50
    assert {word for word in words if not re.search(rf"\b{word}\b", code)} == set()


def test_papers_that_the_code_names_are_listed():
    text = " ".join(text for name, text in files().items() if name.startswith(("fpbench/methods", "fpbench/modif")))
    named = set(re.findall(r"arXiv (\d{4}\.\d{5})", text))
    assert named and named <= set(re.findall(r"arXiv (\d{4}\.\d{5})", SECTIONS["7"]))
    assert tomllib.loads((ROOT / "fpbench/methods/hyperparameters.toml").read_text(encoding="utf-8")).keys() == set(
        METHODS.own
    )
