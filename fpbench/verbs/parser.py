"""The parser of every verb: what is wrong with a command line is one line that says what to type."""

import argparse
import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that abbreviates nothing, and says in one line what was expected, found and meant."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """Take what argparse takes."""
        super().__init__(*args, **options | {"allow_abbrev": False})
        self._given: list[str] = []

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:  # type: ignore[override]
        """Parse; exit with 2 and one line for an option or argument that this verb does not have."""
        self._given = [each for each in args or () if isinstance(each, str)]
        found, extra = super().parse_known_args(args, namespace)
        if extra:
            self._refuse(extra)
        return found, extra

    def error(self, message: str) -> NoReturn:
        """Exit with 2 and one line in place of argparse's usage and message."""
        if choice := re.fullmatch(r"argument (.+?): invalid choice: '(.*?)' \(choose from (.*)\)", message, flags=re.S):
            self._choice(*choice.groups())
        if lacking := re.fullmatch(r"the following arguments are required: (.+)", message):
            self._missing(lacking[1])
        if lacking := re.fullmatch(r"one of the arguments (.+) is required", message):
            self._missing(" or ".join(lacking[1].split()))
        if wrong := re.fullmatch(r"argument (.+?): invalid (int|float) value: '(.*)'", message, flags=re.S):
            kind = "whole number" if wrong[2] == "int" else "number"
            self._end(f"{wrong[1]} {wrong[3]!r}", f"expected a {kind}.")
        if lonely := re.fullmatch(r"argument (.+?): expected (one|at least one) argument", message):
            self._end(f"{lonely[1]} has no value", f"see `{self.prog} --help`")
        self._end(message.removeprefix("argument "), f"see `{self.prog} --help`")

    def _missing(self, names: str) -> NoReturn:
        # What is missing may be there, misspelt.
        options = [each for each in self._given if each.startswith("--")]
        if wrong := [each for each in options if each.partition("=")[0] not in self._option_string_actions]:
            self._refuse(wrong)
        self._end(f"{names} {'are' if ', ' in names else 'is'} missing", self._example())

    def _choice(self, where: str, given: str, known: str) -> NoReturn:
        choices = [each.strip().strip("'") for each in known.split(",")]
        kind = {"VERB": "verb", "PART": "part"}.get(where, f"value for {where}:")
        near = nearest(given, choices)
        meant = f"did you mean {near!r}?" if near else f"choose one of {', '.join(choices)}."
        self._end(
            f"unknown {kind} {given!r}",
            meant if near or kind.startswith("value") else f"{meant} See `{self.prog} --help`",
        )

    def _refuse(self, extra: Sequence[str]) -> NoReturn:
        option = next((each for each in extra if each.startswith("-")), None)
        if option is None:
            self._end(f"unexpected argument {extra[0]!r}", self._named(extra[0]))
        name = option.partition("=")[0]
        near = nearest(name, (each for each in self._option_string_actions if each.startswith("--")))
        self._end(f"unknown option {name}", f"did you mean {near}?" if near else f"see `{self.prog} --help`")

    def _named(self, given: str) -> str:
        """Return the option that a bare argument was meant for, as far as its value shows it."""
        from fpbench.adversaries.conditions import PRESETS, known, name_of, parts
        from fpbench.fingerprints.library import BUILT_IN, MODEL_DEPENDENT
        from fpbench.registry import METHODS
        from fpbench.runs.profile import profile_names

        meant = {
            "--method": METHODS.names(),
            "--profile": profile_names(),
            "--fingerprints": [*BUILT_IN, *MODEL_DEPENDENT],
            "--condition": [*known(), *PRESETS, "origin"],
        }
        value = name_of(parts(given)[0])
        for option, values in meant.items():
            if option in self._option_string_actions and value in values:
                return f"did you mean {option} {given}?"
        return f"see `{self.prog} --help`"

    def _example(self) -> str:
        """Return a command with everything that is required, to be filled in."""
        groups = [
            each for group in self._mutually_exclusive_groups if group.required for each in group._group_actions[:1]
        ]
        wanted = [each for each in self._actions if each.required or each in groups]
        words = [_placeholder(each) for each in sorted(wanted, key=lambda each: bool(each.option_strings))]
        return f"type `{' '.join([self.prog, *words])}`, or see `{self.prog} --help`"

    def _end(self, what: str, then: str) -> NoReturn:
        verb = self.prog.partition(" ")[2]
        print(f"fpbench: {f'{verb}: ' if verb else ''}{' '.join(what.split())}: {then}", file=sys.stderr)
        sys.exit(2)


SHELLS = ("bash", "zsh", "tcsh")


class Completion(argparse.Action):
    """Print the script that completes verbs and options in a shell, and exit; shtab, an extra, writes it."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        """Print it; exit with 2 and one line where shtab is not installed."""
        assert isinstance(parser, Parser)
        if values not in SHELLS:
            parser._end(f"unknown shell {values!r}", f"choose one of {', '.join(SHELLS)}.")
        try:
            import shtab
        except ImportError:
            parser._end("--print-completion needs shtab", "type `pip install 'fpbench[completion]'`")
        print(shtab.complete(parser, shell=values))
        parser.exit(0)


def _placeholder(action: argparse.Action) -> str:
    value = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    if action.choices is not None and not action.option_strings:
        value = f"({'|'.join(map(str, action.choices))})"
    return f"{action.option_strings[0]} {value}" if action.option_strings else value


def nearest(given: str, known: Iterable[str]) -> str | None:
    """Return the name that was probably meant, or ``None``: one that begins or ends with it, or is spelled like it."""
    names = list(known)
    bare = given.lstrip("-").lower()
    for name in names:
        own = name.lstrip("-")
        if len(bare) > 2 and (own.startswith(bare) or bare.startswith(own)):
            return name
    return next(iter(difflib.get_close_matches(given, names, n=1, cutoff=0.6)), None)
