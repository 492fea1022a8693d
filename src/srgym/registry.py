"""Parts by name: one lookup and one set of refusals for policies, sources, rewards, agents and scorers.

Imports nothing heavy: a part's module is imported when the part is asked for.
"""

import inspect
import os
import re
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from srgym.errors import Refusal, WrongType
from srgym.settings import check_arguments, nearest, parameters

__all__ = ["TRUST", "Registry", "Spec", "Untrusted", "class_of", "named_by", "plain", "quoted"]

# What makes a part: a class, or a function. `Registry[type[Agent]].find` gives a `type[Agent]`.
Maker = TypeVar("Maker", bound=Callable[..., Any])

# How a user names a part: its name, or a mapping that holds the name under `name` and its options beside it.
Spec = str | Mapping[str, Any]

_PATH = re.compile(r"\w+(\.\w+)*:\w+(\.\w+)*")

# Set to 1, also by `--trust`: paths to code in files are followed, here and in the processes that are started.
TRUST = "SRGYM_TRUST"
_FILE: ContextVar[Path | None] = ContextVar("file", default=None)


class Untrusted(Refusal):
    """A file names code that is neither the library's nor an installed package's entry point."""


@contextmanager
def named_by(file: Path, trust: bool = False) -> Iterator[None]:
    """Names that are looked up inside come from a file, and a file that was received mustn't say what code is run.

    A path to a module that nothing has imported yet is refused: to import it is to run it.

    Args:
        trust: whether such paths are followed all the same.
    """
    token = _FILE.set(None if trust or os.environ.get(TRUST) == "1" else file)
    try:
        yield
    finally:
        _FILE.reset(token)


class Registry(Generic[Maker]):
    """The parts of one kind, each by a name of the library's, its alias, one registered in this process, one that an
    installed package offers under an entry point, or by `module:attribute`.

    Attributes:
        noun: what a part is called in a message.
        wanted: what a path has to hold, in words.
        fits: whether an object is that; asked before anything of it is called.
        group: the entry-point group of other packages' parts.
        builtin: `module:attribute` by name.
        aliases: short names of built-in parts.
        supplied: arguments that whoever makes the part hands over, so that they are no options.
        registered: parts that were registered in this process, by name.
    """

    def __init__(
        self,
        noun: str,
        wanted: str,
        fits: Callable[[Any], bool],
        group: str,
        builtin: Mapping[str, str],
        *,
        aliases: Mapping[str, str] | None = None,
        supplied: Collection[str] = (),
    ) -> None:
        self.noun, self.wanted, self.fits, self.group = noun, wanted, fits, group
        self.builtin, self.aliases, self.supplied = dict(builtin), dict(aliases or {}), frozenset(supplied)
        self.registered: dict[str, Maker] = {}

    @cached_property
    def installed(self) -> dict[str, EntryPoint]:
        """What installed packages offer, by name. Warns of a name that is taken already."""
        offers: dict[str, EntryPoint] = {}
        for entry in entry_points(group=self.group):
            other = offers[entry.name].value if entry.name in offers else self.builtin.get(self.full_name(entry.name))
            if other is None:
                offers[entry.name] = entry
            else:
                warnings.warn(
                    f"the {self.noun} '{entry.name}' of {entry.value} is hidden by {other}; name it as '{entry.value}'",
                    stacklevel=2,
                )
        return offers

    def names(self) -> list[str]:
        """All names, sorted, without aliases."""
        return sorted({*self.builtin, *self.registered, *self.installed})

    def full_name(self, name: str) -> str:
        """The name that an alias is short for; any other name as it is."""
        return self.aliases.get(name, name)

    def name_of(self, maker: Callable[..., Any]) -> str:
        """What `find` knows a class or function by: its name, else its path."""
        path = f"{maker.__module__}:{maker.__qualname__}"
        paths = self.builtin | {name: entry.value for name, entry in self.installed.items()}
        return next((name for name, known in paths.items() if known == path), path)

    def origin(self, name: str) -> str:
        """Who offers a name: "built-in", the distribution that does, or "registered"."""
        if name in self.builtin:
            return "built-in"
        entry = self.installed.get(name)
        return "registered" if entry is None else entry.dist.name if entry.dist is not None else "installed"

    def knows(self, name: str) -> bool:
        """Whether this is a name, an alias, or a path (which may still lead nowhere)."""
        return self.full_name(name) in self.names() or _PATH.fullmatch(name) is not None

    def check_name(self, name: str) -> None:
        """Refuse what `knows` doesn't.

        Raises:
            ValueError: naming the nearest right name, and all.
        """
        if not self.knows(name):
            near = nearest(name, [*self.names(), *self.aliases])
            raise Refusal(
                f"unknown {self.noun} '{name}': {near}expected one of {', '.join(self.names())}, or module:attribute"
            )

    def find(self, name: str) -> Maker:
        """The class or function that a name, an alias or a path stands for; nothing of it is called.

        Raises:
            ValueError: for an unknown name, a path that leads nowhere, or one to something else than `wanted`.
            Untrusted: for a path that a file names (see `named_by`).
        """
        self.check_name(name)
        name = self.full_name(name)
        if name in self.registered:
            return self.registered[name]
        entry, file = self.installed.get(name), _FILE.get()
        if file is not None and ":" in name and name.partition(":")[0] not in sys.modules:
            raise Untrusted(
                f"{file} names the {self.noun} '{name}', which is neither srgym's nor offered by an installed package; "
                "importing it would run its code: look at it, and give --trust (trust=True) if it may"
            )
        maker = self._at(self.builtin.get(name, name) if entry is None else f"{entry.module}:{entry.attr}")
        if not self.fits(maker):
            raise Refusal(f"{self.noun} '{name}': expected {self.wanted}, got {maker!r}")
        return maker  # type: ignore[no-any-return]

    def _at(self, path: str) -> Any:
        module, _, attribute = path.partition(":")
        try:
            place: Any = import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise  # the module is there; something that it imports isn't
            raise Refusal(f"{self.noun} '{path}': there is no module '{module}' to import") from error
        for part in attribute.split("."):
            if not hasattr(place, part):
                near = nearest(part, dir(place))
                raise Refusal(f"{self.noun} '{path}': {near}module '{module}' has no '{part}'")
            place = getattr(place, part)
        return place

    def options(self, maker: Callable[..., Any]) -> dict[str, Any] | None:
        """The keyword arguments that a part takes, with their defaults (`inspect.Parameter.empty` where it must be
        supplied), those of base classes too where it passes them on; None if it takes any.
        """
        known, anything = parameters(maker)
        return None if anything else {n: p.default for n, p in known.items() if n not in self.supplied}

    def defaults(self, name: str) -> dict[str, Any]:
        """The options of a part that have a default which a configuration can hold, with it."""
        options = self.options(self.find(name)) or {}
        return {key: plain(value) for key, value in options.items() if _writable(value)}

    def check_options(self, name: str, options: Mapping[str, Any]) -> None:
        """Refuse an option that a part hasn't got, the lack of one that it needs, and a value of the wrong type.

        Raises:
            ValueError: naming it, the nearest that there is, and all.
        """
        maker = self.find(name)
        self.check(maker, name, options)

    def check(self, maker: Callable[..., Any], name: str, options: Mapping[str, Any]) -> None:
        """`check_options`, of the part itself; `name` is what it is called in a message."""
        listed = self.options(maker)
        known = listed or {}
        for option in options:
            if option not in known and listed is not None:
                takes = f"it takes {', '.join(sorted(known))}" if known else "it takes none"
                raise Refusal(f"{self.noun} '{name}' has no option '{option}': {nearest(option, known)}{takes}")
        missing = [key for key, value in known.items() if value is inspect.Parameter.empty and key not in options]
        if missing and inspect.isclass(maker):  # a function's may come with every call
            raise Refusal(f"{self.noun} '{name}' needs {quoted(missing)}, got {quoted(options) or 'no options'}")
        check_arguments(maker, options, f"{self.noun} '{name}', ")

    def read(self, spec: Any, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Name and options of a part that is told as a name, or as `{"name": ..., **options}`.

        Raises:
            ValueError: for a mapping without a name.
            TypeError: for anything else.
        """
        if isinstance(spec, str):
            return spec, dict(options)
        if not isinstance(spec, Mapping):
            raise WrongType(f"expected a {self.noun}'s name, or {{'name': ...}}, got {spec!r}")
        options = {**plain(spec), **options}
        if not isinstance(options.get("name"), str):
            raise Refusal(f"expected a {self.noun} as {{'name': ...}}, got the keys {quoted(options)}")
        return options.pop("name"), options

    def make(self, spec: Any, /, *parts: Any, **options: Any) -> Any:
        """Make a part from its name or mapping, the parts that it is made of, and its options, which are checked."""
        name, options = self.read(spec, options)
        maker = self.find(name)
        self.check(maker, name, options)
        return maker(*parts, **options)


def class_of(path: str) -> Callable[[Any], bool]:
    """A `fits`: whether an object is a subclass of the class at `module:Class`, which is imported when it is asked."""

    def fits(maker: Any) -> bool:
        module, _, name = path.partition(":")
        return isinstance(maker, type) and issubclass(maker, getattr(import_module(module), name))

    return fits


def plain(value: Any) -> Any:
    """Configuration nodes as plain dicts and lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [plain(inner) for inner in value]
    return value


def quoted(names: Iterable[str]) -> str:
    """Names for a message."""
    return ", ".join(f"'{name}'" for name in names)


def _writable(value: Any) -> bool:
    """Whether YAML can hold a value."""
    if isinstance(value, Mapping):
        return all(map(_writable, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_writable, value))
    return value is None or isinstance(value, (bool, int, float, str))
