"""What a child process hands back, which is a stranger's word: replies, and the weights that it says it changed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from json import dumps, loads
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from fpbench.checks import Checklist, Finding, Settings, first_error
from fpbench.errors import CellError
from fpbench.models.weights import Factors
from fpbench.submissions.manifest import AdversaryManifest
from fpbench.text import printable

LOGITS = "logits"  # the one tensor of a file in which logits travel
LONGEST_QUERY = 100_000  # characters

Figure = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Message(Settings):
    """Base of everything that a child sends: of exactly these types, or the request fails."""

    model_config = ConfigDict(strict=True)


class Reply(Message):
    """A reply to one request."""

    status: str
    answer: dict[str, Any] = {}
    reason: str = ""
    traceback: str = ""
    adapter_seconds: Figure


class Description(Message):
    """The names that an adapter registers, its version, and the hyper-parameters that its Config refuses, by family."""

    names: list[str]
    version: str | None = None
    refused: dict[str, str] = {}


class Declaration(Message):
    """The names that an adversary.py registers, and what the class of the folder's name declares."""

    names: list[str]
    version: str | None = None
    level: str | None = None
    parts: list[str] = []
    needs: list[str] = []
    pays: dict[str, float] = {}
    dose: dict[str, Any] | None = None

    def differs(self, manifest: AdversaryManifest) -> str | None:
        """Return the first thing that the class and the ``submission.toml`` say otherwise; ``None`` for nothing."""
        dose = None if manifest.dose is None else asdict(manifest.dose.as_dose())
        for name, own, said in (
            ("version", self.version, manifest.code_version),
            ("level", self.level, manifest.level),
            ("parts", sorted(self.parts), sorted(manifest.parts)),
            ("needs", sorted(self.needs), sorted(manifest.needs)),
            ("pays", self.pays, manifest.pays),
            ("dose", self.dose, None if dose is None else loads(dumps(dose))),
        ):
            if own != said:
                return f"{name} {printable(str(own))} in adversary.py, {printable(str(said))} in submission.toml"
        return None


class Prepared(Message):
    """An adversary that looked at what it is given: its number, and from which step on it leaves the logits alone."""

    number: Annotated[int, Field(ge=0)]
    steps: Annotated[int, Field(ge=0)] | None = None


class Query(Message):
    """What an adversary makes of a query: texts, of which one is drawn; ``None`` refuses.

    Of each text ``rendered`` says whether the chat template is around it already.
    """

    texts: Annotated[list[Annotated[str, Field(max_length=LONGEST_QUERY)]], Field(min_length=1)] | None
    rendered: list[bool] = []

    @model_validator(mode="after")
    def _as_many(self) -> "Query":
        if self.texts is not None and len(self.texts) != len(self.rendered):
            raise ValueError("expected as many marks as texts")
        return self


class Pair(Message):
    """One fingerprint of an adapter's own."""

    trigger: str
    targets: list[str]


class Drawn(Message):
    """A set of an adapter's own."""

    fingerprints: list[Pair]


class Usage(Message):
    """Time and memory of an injection, as the child measured them."""

    seconds: dict[str, Figure]
    peak_memory: Annotated[int, Field(ge=0)]


Kind = TypeVar("Kind", bound=Message)


def validated(kind: type[Kind], message: bytes | dict[str, Any]) -> Kind:
    """Return a child's message as one of a kind; CellError if it is not."""
    try:
        return kind.model_validate_json(message) if isinstance(message, bytes) else kind.model_validate(message)
    except ValidationError as error:
        reason = printable(first_error(error)[1])
        raise CellError(f"the child process sent an invalid {kind.__name__.lower()} ({reason}).") from None


def promises(answer: Mapping[str, Any], checks: Checklist[Any], what: str) -> list[Finding]:
    """Return the findings of a contract: expectations and remedies are ours, what was found is told by the child.

    Raises:
        CellError: naming ``what`` ran, if it came back with other checks than these.
    """
    try:
        found = TypeAdapter(list[Finding]).validate_python(answer.get("findings"))
    except ValidationError:
        found = []
    if [each.name for each in found] != [promise.name for promise in checks]:
        raise CellError(f"{what} came back with other checks than it has.")
    return [
        Finding(promise.name, each.passed, promise.expected, printable(each.found), promise.remedy)
        for promise, each in zip(checks, found, strict=True)
    ]


def broken(findings: Sequence[Finding]) -> str | None:
    """Return which promises were not kept, in words; ``None`` if there are none."""
    names = [finding.name for finding in findings if not finding.passed]
    return f"{len(names)} that are not: {', '.join(names)}" if names else None


def read_changes(content: bytes, base: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Factors]]:
    """Return the new values of changed parameters, and the factors of those that were handed back as such.

    Args:
        content: of a safetensors file: a parameter under its name, or ``NAME.left`` [h, r] and ``NAME.right`` [d, r]
            for a change that is a product.
        base: the parameters with their present values.

    Raises:
        CellError: for a parameter that the base does not have, or of another shape or dtype, or not finite.
    """
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        reason = printable(str(error))
        raise CellError(f"the child process handed back no safetensors file ({reason}).") from None
    values: dict[str, Tensor] = {}
    factors: dict[str, Factors] = {}
    for name, before in base.items():
        if name in tensors:
            values[name] = _alike(name, tensors.pop(name), tuple(before.shape), str(before.dtype))
        elif f"{name}.left" in tensors and f"{name}.right" in tensors and before.ndim == 2:
            left, right = tensors.pop(f"{name}.left"), tensors.pop(f"{name}.right")
            rank = left.shape[-1] if left.ndim == 2 else 0
            height, width = before.shape
            factors[name] = Factors(
                _alike(f"{name}.left", left, (height, rank), "torch.float32"),
                _alike(f"{name}.right", right, (width, rank), "torch.float32"),
            )
            values[name] = factors[name].added_to(before)
    if tensors:
        name = printable(sorted(tensors)[0], 100)
        raise CellError(f"the adapter handed back {name}, which the base does not have.")
    for name, value in values.items():
        if not value.isfinite().all():
            raise CellError(f"the injection left non-finite weights in {name}.")
    return values, factors


def read_logits(content: bytes, like: Tensor, name: str) -> Tensor:
    """Return the logits [n, V] of a safetensors file, in place of ``like`` [n, V] float32; CellError for others."""
    try:
        ((key, found),) = load(content).items()
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CellError(f"adversary {name!r} handed back no logits ({printable(str(error))}).") from None
    expected, shown = f"{tuple(like.shape)} {like.dtype}", f"{tuple(found.shape)} {found.dtype}"
    if key != LOGITS or shown != expected:
        raise CellError(f"adversary {name!r} returned logits {shown}: expected {expected}.")
    return found


def _alike(name: str, value: Tensor, shape: tuple[int, ...], dtype: str) -> Tensor:
    found = f"{tuple(value.shape)} {value.dtype}"
    if found != f"{shape} {dtype}":
        raise CellError(f"parameter {name}: expected {shape} {dtype}, found {found}.")
    return value
