"""What every reader of a task format returns."""

from headrace.types import Record, Task


class Read(Record, frozen=True, kw_only=True):
    """A task and what was odd about its folder."""

    task: Task
    warnings: tuple[str, ...] = ()
