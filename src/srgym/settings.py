"""Nested settings: their leaves, and whether the values are what takes them asks for."""

import inspect
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_origin

from annotated_types import Ge, Gt, Le

from srgym.errors import Refusal, WrongType

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

__all__ = [
    "Count", "Natural", "Positive", "Share", "check_arguments", "check_plain", "check_value", "fill", "leaves",
    "nearest", "parameters",
]  # fmt: skip

Settings = TypeVar("Settings")

# Kinds of numbers that settings have.
Count = Annotated[int, Ge(1)]
Natural = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
Share = Annotated[float, Ge(0), Le(1)]


def leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a nested mapping that isn't a mapping with something in it, under its dotted key."""
    for key, value in tree.items():
        here = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping) and value:
            yield from leaves(value, here)
        else:
            yield here, value


_SECRETS = {"token", "access_token", "auth_token", "hf_token", "api_key", "apikey", "password", "secret"}
_PASSWORD_IN_URL = re.compile(r"://[^/@\s]*:[^/@\s]*@")


def check_plain(value: Any, key: str = "") -> None:
    """Refuse a secret among settings, which are written down with what comes of them, and a reference to anything but
    another setting: `${oc.env:HOME}` would let a file read its reader's environment.

    Raises:
        Refusal: naming the setting, and not what it holds.
    """
    if isinstance(value, Mapping):
        for name, inner in value.items():
            check_plain(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            check_plain(inner, key)
    elif isinstance(value, str):
        if key.rpartition(".")[2].lower() in _SECRETS or _PASSWORD_IN_URL.search(value):
            raise Refusal(
                f"{key} holds a secret, and settings are written down with their results: leave it out, and put the "
                "token of a judge's server into the environment variable SRGYM_SERVE_TOKEN (or another, named by "
                "the engine's token_variable)"
            )
        if _calls(value):
            raise Refusal(f"{key}={value!r:.60}: expected ${{another.setting}}, and no function in a reference")


def _calls(text: str) -> bool:
    """Whether a reference in a text has a function: `${name:...}`."""
    depth = 0
    for mark in re.findall(r"\$\{|\}|:", text):
        if mark == ":" and depth:
            return True
        depth += {"${": 1, "}": -1 if depth else 0}.get(mark, 0)
    return False


def check_arguments(maker: Callable[..., Any], values: Mapping[str, Any], where: str) -> None:
    """Check values against the annotations of the parameters that they are for, those of base classes too.

    Args:
        maker: a class or a function. What it doesn't annotate, or annotates with `Any`, may be anything.
        where: what comes before a parameter's name in a message, as `runner.`.

    Raises:
        WrongType: naming the first value that isn't what its parameter asks for.
    """
    annotations = _annotations(maker)
    for name, value in values.items():
        if name in annotations:
            check_value(annotations[name], value, f"{where}{name}")


def fill(kind: type[Settings], values: Mapping[str, Any], where: str) -> Settings:
    """A class of settings, which checks its values itself, from values by name.

    Raises:
        Refusal: for a name that it hasn't got, with the nearest; for what the class refuses.
    """
    known = list(inspect.signature(kind).parameters)
    for name in values:
        if name not in known:
            raise Refusal(f"unknown setting '{where}{name}': {nearest(name, known)}expected one of {', '.join(known)}")
    return kind(**values)


def check_value(annotation: Any, value: Any, name: str) -> None:
    """Check one value. A whole number is a float, too; nothing else is taken for what it isn't, and nan for nothing.

    Raises:
        WrongType: in words, with the value.
    """
    from pydantic import ValidationError  # a quarter of a second that a listing needn't take

    adapter = _adapter(annotation)
    if adapter is None:
        return
    plain = value.item() if getattr(value, "shape", None) == () else value  # a scalar of numpy or torch
    if get_origin(annotation) is tuple and isinstance(plain, list):  # YAML has no tuples
        plain = tuple(plain)
    try:
        adapter.validate_python(plain)
    except ValidationError as error:
        raise WrongType(f"{name}: expected {_expected(error)}, got {value!r}") from None
    if isinstance(plain, float) and math.isnan(plain):
        raise WrongType(f"{name}: expected a number, got nan")


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint at the nearest name, to be put before the rest of a message; empty where none is near."""
    near = get_close_matches(name, list(known), 1)
    return f"did you mean '{near[0]}'? " if near else ""


def parameters(maker: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    """The parameters of a class or a function that can be given by name, those of base classes too where it passes them
    on; and whether it takes any name besides.
    """
    known: dict[str, inspect.Parameter] = {}
    for kind in maker.__mro__[:-1] if isinstance(maker, type) else (maker,):
        if kind is not maker and "__init__" not in vars(kind):
            continue
        listed = inspect.signature(kind).parameters.values()
        for p in listed:
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
                known.setdefault(p.name, p)
        if not any(p.kind is p.VAR_KEYWORD for p in listed):
            return known, False
    return known, True


@cache
def _annotations(maker: Callable[..., Any]) -> dict[str, Any]:
    said = {name: parameter.annotation for name, parameter in parameters(maker)[0].items()}
    unsaid = (inspect.Parameter.empty, Any)
    return {name: kind for name, kind in said.items() if kind not in unsaid and not isinstance(kind, str)}


def _adapter(annotation: Any) -> "TypeAdapter[Any] | None":
    """What validates an annotation; None for one that pydantic can't."""
    try:
        return _made(annotation)
    except TypeError:  # not hashable
        return None


@cache
def _made(annotation: Any) -> "TypeAdapter[Any] | None":
    from pydantic import ConfigDict, TypeAdapter
    from pydantic.errors import PydanticUserError

    try:
        return TypeAdapter(annotation, config=ConfigDict(strict=True, arbitrary_types_allowed=True))
    except PydanticUserError:
        return None


_WORDS = {
    "int_type": "a whole number", "float_type": "a number", "bool_type": "true or false", "string_type": "a text",
    "none_required": "null", "list_type": "a list", "tuple_type": "a list", "dict_type": "a mapping",
    "mapping_type": "a mapping", "sequence_str": "a list", "is_instance_of": "an instance of {class}",
    "greater_than_equal": "at least {ge:g}", "greater_than": "above {gt:g}", "less_than_equal": "at most {le:g}",
    "less_than": "below {lt:g}", "too_long": "at most {max_length} values", "missing": "more values",
}  # fmt: skip


def _expected(error: "ValidationError") -> str:
    """What was expected, in words, with the place inside of a list."""
    wants: dict[str, None] = {}
    for problem in error.errors(include_url=False, include_input=False):
        said = problem["msg"].removeprefix("Input should be ")
        want = _WORDS.get(problem["type"], said[:1].lower() + said[1:]).format_map(problem.get("ctx", {}))
        if want == "an instance of Sequence":
            want = "a list"
        inside = [part for part in problem["loc"] if isinstance(part, int)]
        wants[f"{want} at place {inside[0]}" if inside else want] = None
    return " or ".join(wants)
