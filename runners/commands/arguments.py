"""Taking a command line apart: what isn't a Hydra override."""

from srgym.errors import Refusal

__all__ = ["take_flag", "take_option", "take_setting"]


def take_flag(arguments: list[str], flag: str) -> bool:
    """Remove `flag` from the arguments; whether it was there."""
    present = flag in arguments
    while flag in arguments:
        arguments.remove(flag)
    return present


def take_option(arguments: list[str], option: str) -> list[str]:
    """Remove every `option VALUE` and `option=VALUE`, and return the values.

    Raises:
        ValueError: if the last argument is the option without its value.
    """
    values, kept = [], []
    rest = iter(arguments)
    for argument in rest:
        if argument == option:
            value = next(rest, None)
            if value is None:
                raise Refusal(f"{option} expects a value after it, got none")
            values.append(value)
        elif argument.startswith(f"{option}="):
            values.append(argument.partition("=")[2])
        else:
            kept.append(argument)
    arguments[:] = kept
    return values


def take_setting(arguments: list[str], key: str, default: str | None = None) -> str | None:
    """Remove `key=value` and return the last such value, or the default."""
    values = [argument.partition("=")[2] for argument in arguments if argument.partition("=")[0] == key]
    arguments[:] = [argument for argument in arguments if argument.partition("=")[0] != key]
    return values[-1] if values else default
