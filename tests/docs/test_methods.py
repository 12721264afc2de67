"""docs/methods.md: whatever refers to it leads somewhere, and what it names is in the code."""

import importlib
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fpbench.board.rows import published
from fpbench.fingerprints.code_mixed import LEAST_CMI, cmi_v1
from fpbench.fingerprints.instructional import FRAGMENTS
from fpbench.fingerprints.natural import MOST_TOKENS, natural_set
from fpbench.fingerprints.translation import Lexicon
from fpbench.methods.hyperparameters import FAMILIES, defaults
from fpbench.models.training import CLIP_NORM, WARM_UP
from fpbench.modifications.prune import EXPONENT
from fpbench.registry import METHODS, MODIFICATIONS
from fpbench.runs.search import FINE_TUNING_RATES, HELD_OUT
from tests.conftest import ROOT
from tests.docs.markdown import names, read

DOCUMENT = read("methods.md")
PROSE = re.sub(r"```.*?```", "", DOCUMENT, flags=re.S)
HEADING = re.compile(r"^#{2,3} (\d+(?:\.\d+)?) (.+)$", flags=re.M)
TITLES = dict(HEADING.findall(DOCUMENT))
SECTIONS = dict(zip(TITLES, HEADING.split(DOCUMENT)[3::3], strict=True))
OF_METHODS = [number for number in SECTIONS if number.startswith("2.")]

FOLDERS = ("docs", "fpbench", "leaderboard", "submissions", "tasks", "tests")
SUFFIXES = {".md", ".py", ".toml", ".yaml", ".yml"}
LIST = r"(?:(?:, | and | to ){0})*"
STEPS = r"steps? \d+" + LIST.format(r"\d+")
EQUATIONS = r"eqs?\. \(\d+\)" + LIST.format(r"\(\d+\)")
ALGORITHM = r"Algorithm \d+"
SECTION = r"§\d+(?:\.\d+)?"
REFERENCE = re.compile(rf"docs/methods\.md {SECTION}(?:, {SECTION})*(?:, (?:{STEPS}|{EQUATIONS}|{ALGORITHM}))*")


def steps(section: str) -> list[str]:
    return re.findall(r"^(\d+)\. ", SECTIONS[section], flags=re.M)


def equations(text: str) -> list[str]:
    """Numbers of the equations in the fenced blocks of a text, in order."""
    return re.findall(r"\((\d+)\)$", "\n".join(re.findall(r"```(.*?)```", text, flags=re.S)), flags=re.M)


def algorithms(section: str) -> list[str]:
    return re.findall(r"\*\*Algorithm (\d+)\*\*", SECTIONS[section])


def missing(text: str) -> list[str]:
    """References of a text to what the document does not have."""
    found = []
    for reference in REFERENCE.findall(text):
        sections = re.findall(r"§([\d.]*\d)", reference)
        held = {STEPS: steps, EQUATIONS: lambda section: equations(SECTIONS[section]), ALGORITHM: algorithms}
        if not set(sections) <= SECTIONS.keys() or any(
            set(re.findall(r"\d+", part)) - set(held[kind](sections[-1]))
            for kind in held
            for part in re.findall(kind, reference)
        ):
            found.append(reference)
    return found


def unclear(text: str) -> list[str]:
    """What looks like a reference, to this document or to another note of its name, and does not say where."""
    rest = REFERENCE.sub("", text)
    return re.findall(r"\S*methods\.md,? (?:§|step|eq)\S*|\beqs?\. ?\(?\d+|\bsteps? [A-E]\b(?:\.\d)?", rest)


@cache
def files() -> dict[str, str]:
    """Every text of the repository but this file, with line breaks and signs of comments as spaces."""
    paths = [*ROOT.glob("*.*"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))]
    return {
        str(path.relative_to(ROOT)): re.sub(r"\s*\n\s*(?:#+ )?", " ", path.read_text(encoding="utf-8"))
        for path in paths
        if path.suffix in SUFFIXES and path != Path(__file__).resolve() and path.is_file()
    }


def test_every_reference_leads_somewhere():
    assert {name: wrong for name, text in files().items() if (wrong := missing(text))} == {}
    assert sum(len(REFERENCE.findall(text)) for text in files().values()) > 35


def test_no_reference_is_unclear():
    assert {name: wrong for name, text in files().items() if (wrong := unclear(text))} == {}


def test_broken_references_are_found():
    broken = [
        "§9.1",
        "§2.2, step 9",
        "§2.2, steps 1 to 9",
        "§2.2, eq. (17)",
        "§2.5, eqs. (17) and (2)",
        "§4.2, Algorithm 1",
    ]
    for each in broken:
        assert missing(f"see docs/methods.md {each}.") == [f"docs/methods.md {each}"]
    for each in (
        "methods.md §1.2, step D",
        "docs/methods.md, step 3",
        "eq. (3) of methods.md §1.5",
        "as step D.5 says",
    ):
        assert unclear(each)
    assert not missing("docs/methods.md §2.5, eqs. (17) and (18), step 3") + unclear(
        "docs/methods.md §2.2, steps 5 and 6."
    )


def test_numbers_follow_each_other():
    assert equations(DOCUMENT) == [str(number) for number in range(1, 1 + len(equations(DOCUMENT)))]
    for section in SECTIONS:
        assert steps(section) == [str(number) for number in range(1, 1 + len(steps(section)))]
    for section in re.findall(r"§(\d+(?:\.\d+)?)", PROSE):
        assert section in SECTIONS
    assert set(re.findall(r"\((\d+)\)", PROSE)) <= set(equations(DOCUMENT))
    for section, number, last in re.findall(r"[Ss]teps? (\d+)(?: (?:to|and) (\d+))? of \[§([\d.]*\d)\]", PROSE):
        assert {section, number or section} <= set(steps(last))


def test_links_to_sections_name_them():
    for text, anchor in re.findall(r"\[§?(\d+(?:\.\d+)?)[^\]]*\]\(#(\d+)-", DOCUMENT):
        assert text.replace(".", "") == anchor
    assert set(re.findall(r"\[(\d+(?:\.\d+)?) [^\]]*\]\(#", DOCUMENT)) == {s for s in SECTIONS if s not in "12345"}


def section_of(method: str) -> str:
    (found,) = [number for number in OF_METHODS if TITLES[number].lower() == method]
    return found


def part(section: str, name: str) -> str:
    """The point of a section's list that begins with a name, flattened."""
    (found,) = re.findall(rf"^- \*\*{name}\.\*\*(.*?)(?=^- |^$|\Z)", SECTIONS[section], flags=re.M | re.S)
    return " ".join(found.split())


@pytest.mark.parametrize("method", METHODS.own)
def test_every_method_has_a_section_with_all_its_parts(method: str):
    section = section_of(method)
    assert SECTIONS[section].strip().startswith("**Idea.**") and steps(section) and equations(SECTIONS[section])
    module, _, name = METHODS._targets[method].partition(":")
    assert f"{module.replace('.', '/')}.py:{name}" in names(part(section, "Code"))
    for each in ("Otherwise than the reference", "Cost"):
        assert SECTIONS[section].count(f"- **{each}.**") == 1
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


def test_numbers_are_those_of_the_code():
    flat = " ".join(DOCUMENT.split())
    assert f"clipped to norm {CLIP_NORM:g}, warm-up over {WARM_UP:.0%}".replace("%", " %") in flat
    assert flat.count(f"on {HELD_OUT} rows of") == flat.count(f"on the {HELD_OUT} rows that follow") == 1
    assert f"with a = {EXPONENT}:" in flat and f"as many of the {len(FRAGMENTS)} with" in flat
    assert f"index of {LEAST_CMI:g} or more" in flat and f"at most {['', '', '', 'three'][MOST_TOKENS]} tokens" in flat
    languages = Lexicon.shipped().languages
    valid = [(a, b) for a in languages for b in languages if cmi_v1((a, b)) >= LEAST_CMI]
    assert f"{len(valid)} of {len(languages) ** 2} variants" in flat and "each of the five languages" in flat
    assert {len(each.targets) for each in natural_set()} == {5} and len(natural_set()) == len(FINE_TUNING_RATES) == 10
    detected = published()["detectability_fsr_sampled"].values()
    counted = [len(of.keys() - {"avg_of_six_modifications"}) for methods in detected for of in methods.values()]
    assert (
        f"{sum(counted)} figures for {len(detected)} models, {len(counted) // 3} methods and {counted[0]} cond" in flat
    )


def test_the_hypernetwork_is_as_large_as_said():
    (facts,) = [facts for facts, family in FAMILIES.items() if family == "llama-3.2-3b"]
    given = defaults("rledit", "llama-3.2-3b")
    hidden, inner = facts[1], 8192
    parameters = 2 * given["hypernetwork_blocks"] * given["rank"] * (hidden + inner)
    assert f"{parameters / 1e6:.0f} million for Llama-3.2-3B" in " ".join(DOCUMENT.split())


def test_papers_that_the_code_names_are_listed():
    text = " ".join(text for name, text in files().items() if name.startswith(("fpbench/methods", "fpbench/modif")))
    named = set(re.findall(r"arXiv (\d{4}\.\d{5})", text))
    assert named and named <= set(re.findall(r"arXiv (\d{4}\.\d{5})", SECTIONS["7"]))
    assert tomllib.loads((ROOT / "fpbench/methods/hyperparameters.toml").read_text(encoding="utf-8")).keys() == set(
        METHODS.own
    )
