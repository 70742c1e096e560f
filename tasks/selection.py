"""Which tasks `include` and `exclude` mean.

Rule: pure. A pattern is tried on the whole name (`org/slug`), on the slug and on the folder's
name. A pattern that is one of these names to the letter means that name only, so that names which
differ in case, in Unicode form or hold `*` can each be asked for; any other is a shell pattern in
which case counts and Unicode form does not.
"""

import difflib
import unicodedata
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from headrace.errors import TaskError
from headrace.types import Record


class Named(Record, frozen=True, kw_only=True):
    """The names of one task folder."""

    name: str
    """The task's; the folder's where it cannot be read."""
    path: str

    @property
    def forms(self) -> tuple[str, ...]:
        return (self.name, self.name.rpartition("/")[2], Path(self.path).name)


class Selection:
    """The two lists of patterns against a known set of tasks."""

    def __init__(
        self, known: Iterable[Named], include: Sequence[str], exclude: Sequence[str]
    ) -> None:
        self._known = tuple(known)
        self._exact = {form for one in self._known for form in one.forms}
        self._include, self._exclude = tuple(include), tuple(exclude)

    def takes(self, one: Named) -> bool:
        included = not self._include or self._any(one, self._include)
        return included and not self._any(one, self._exclude)

    def refuse_idle(self) -> None:
        """`TaskError` for an include pattern that means nothing here."""
        for pattern in self._include:
            if not any(self._any(one, (pattern,)) for one in self._known):
                slugs = [one.name.rpartition("/")[2] for one in self._known]
                near = difflib.get_close_matches(pattern, slugs, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise TaskError(
                    f"include {pattern!r} matches none of {len(self._known)} tasks{hint}"
                )

    def _any(self, one: Named, patterns: Sequence[str]) -> bool:
        return any(
            pattern in one.forms if pattern in self._exact else _fits(one, pattern)
            for pattern in patterns
        )


def _fits(one: Named, pattern: str) -> bool:
    wanted = unicodedata.normalize("NFC", pattern)
    return any(fnmatchcase(unicodedata.normalize("NFC", form), wanted) for form in one.forms)
