"""The command line as it was given, for what is made by it to say how.

Rule: names of folders and not their places: another person has them elsewhere.
"""

import shlex
from collections.abc import Sequence
from pathlib import PurePath


def as_given(arguments: Sequence[str]) -> str:
    """The line that makes the same again, of `sys.argv`."""
    shown = [_named(one) for one in arguments[1:] if one != "--debug"]
    return shlex.join(["headrace", *shown])


def _named(argument: str) -> str:
    option, equals, value = argument.partition("=")
    if option.startswith("-") and equals:
        return f"{option}={_named(value)}"
    return PurePath(argument).name or argument if "/" in argument else argument
