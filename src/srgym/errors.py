"""What srgym refuses, apart from what fails: a refusal tells its user what to mend, a failure shows where it happened.

The command line prints a refusal as a sentence and ends with exit code 2; any other error keeps its traceback.
"""

__all__ = ["MissingFile", "Refusal", "WrongType"]


class Refusal(ValueError):
    """An input that can't be used: the message names what was expected and what came."""


class MissingFile(Refusal, FileNotFoundError):
    """A file or folder that isn't where it was expected."""


class WrongType(Refusal, TypeError):
    """A value of a kind that can't be used."""
