"""Every document: links lead somewhere, commands parse, and files and names of code that it mentions exist."""

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest

from fpbench.cli import parser
from tests.conftest import ROOT
from tests.docs.markdown import DOCUMENTS, anchors, commands, links, mentions

each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
PARSER = parser()


@each_document
def test_relative_links_lead_somewhere(path: Path):
    for link in links(path.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), f"{path.name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{path.name} links to {link}, a heading that is not there"


@each_document
def test_commands_parse(path: Path):
    for command in commands(path.read_text(encoding="utf-8")):
        try:
            PARSER.parse_args(shlex.split(command)[1:])
        except SystemExit:
            pytest.fail(f"{path.name}: {command}")


@each_document
def test_commands_in_prose_name_verbs_and_options_that_exist(path: Path):
    for mention in mentions(path.read_text(encoding="utf-8")):
        verb, *rest = mention.split()[1:]
        if verb == "…":
            continue
        known = _verbs(PARSER)
        assert verb in known, f"{path.name}: {mention}"
        deeper = _verbs(known[verb])
        chosen = deeper.get(rest[0], known[verb]) if rest else known[verb]
        options = {option for action in chosen._actions for option in action.option_strings}
        assert {part for part in rest if part.startswith("--")} <= options, f"{path.name}: {mention}"


def _verbs(of: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return {
        name: verb
        for action in of._actions
        if isinstance(action, argparse._SubParsersAction)
        for name, verb in action.choices.items()
    }


@each_document
def test_files_of_the_repository_that_are_named_exist(path: Path):
    text = path.read_text(encoding="utf-8")
    folders = "fpbench|tests|docs|tasks|leaderboard|submissions"
    for span in re.findall(rf"`((?:{folders})/[\w./-]*)(?:::\w+)?`", text):
        if span.startswith(("submissions/NAME", "submissions/my_method")):
            continue  # the reader's own
        assert (ROOT / span).exists(), f"{path.name} names {span}"


@each_document
def test_names_of_code_that_are_mentioned_exist(path: Path):
    for span in re.findall(r"`(fpbench(?:\.\w+)+)(?:\([^`]*\))?`", path.read_text(encoding="utf-8")):
        assert _exists(span), f"{path.name} names {span}"


def _exists(name: str) -> bool:
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            fields = getattr(found, "model_fields", {})
            if part not in fields and not hasattr(found, part):
                return False
            found = fields.get(part) or getattr(found, part)
        return True
    return False


def test_every_document_is_read_and_listed():
    listed = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in DOCUMENTS:
        if path.parent.name == "docs":
            assert f"docs/{path.name}" in listed, path.name
    found = [command for path in DOCUMENTS for command in commands(path.read_text(encoding="utf-8"))]
    assert len(found) > 30
