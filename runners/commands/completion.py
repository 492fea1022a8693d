"""What a shell offers after Tab: commands, settings and their values, through argcomplete.

pip install argcomplete
eval "$(register-python-argcomplete srgym)"        in ~/.bashrc; for zsh and fish see argcomplete's page
"""

import argparse
from collections.abc import Iterator
from typing import Any

__all__ = ["complete", "offers"]


def complete(commands: list[str]) -> None:
    """Answer the shell that asks by argcomplete's environment variables, and end the process."""
    import argcomplete

    parser = argparse.ArgumentParser(add_help=False)

    def completer(prefix: str, parsed_args: Any, **_: Any) -> list[str]:
        return list(offers([word for word in parsed_args.words if word != prefix], prefix, commands))

    parser.add_argument("words", nargs="*").completer = completer  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser, always_complete_options=False)


def offers(words: list[str], prefix: str, commands: list[str]) -> Iterator[str]:
    """What may stand where `prefix` was begun, after the words before it."""
    if not words:
        yield from (command for command in commands if command.startswith(prefix))
        return
    from srgym.runners.run.config import GROUPS, choices, compose

    key, equals, begun = prefix.partition("=")
    if equals:
        if key in GROUPS:
            yield from (f"{key}={name}" for name in choices(key) if name.startswith(begun))
        return
    experiment = [word for word in words if word.startswith("experiment=")]
    try:
        tree, _ = compose(experiment)
    except ValueError:
        tree, _ = compose([])
    from srgym.settings import leaves

    known = [*GROUPS, *(key for key, _ in leaves(tree))]
    yield from (f"{name}=" for name in dict.fromkeys(known) if name.startswith(prefix))
