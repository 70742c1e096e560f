"""Every error headrace raises, named after the boundary that was crossed.

    HeadraceError
    ├── UsageError            the user can mend it: exit code 2, no traceback
    │   ├── ConfigError         a key, a type or a value of the configuration
    │   ├── TaskError           a task folder that cannot be read as its format says
    │   ├── TrajectoryError     a file that is not a trajectory in the format it claims
    │   └── RunFolderError      a run folder that is foreign, torn or of another configuration
    ├── InfrastructureError   becomes data on the episode: `reward = None` with this reason
    │   ├── ImageError          an image or root filesystem could not be built or found
    │   ├── SandboxError        a sandbox did not start, was lost, or broke its contract
    │   │   ├── SandboxEnded      ended by itself: once is tried again, every time is the agent's
    │   │   ├── SandboxFull       what the agent left running keeps us out: a fault of the verdict
    │   │   └── ProviderGone      the engine behind every sandbox is gone: the run waits, then stops
    │   ├── PolicyError         a policy call failed for good
    │   │   └── ServerGone        the model server stopped answering; it may come back
    │   │       └── ServerLost      it will not come back: the run stops
    │   └── StoreError          a record could not be made durable: the run stops
    └── ContractError         a caller broke a documented rule; a bug, never data

Failures of a verifier are not errors: they are values on `Verdict` (see `VerdictFault`).
A message says what was expected, what was found and what to do.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class HeadraceError(Exception):
    """The root. Catch it to catch everything headrace raises on purpose."""


class UsageError(HeadraceError):
    """The user can mend it. The command line prints the message and exits with 2."""


class ConfigError(UsageError):
    """A configuration key, type or value is wrong; the message carries its dotted path."""


class TaskError(UsageError):
    """A task folder cannot be read as its format says; the message carries its path."""


class TrajectoryError(UsageError):
    """A file cannot be read as the trajectory it claims to be; the message carries its path."""


class RunFolderError(UsageError):
    """A run folder is missing, foreign, torn beyond its tail, or of another configuration."""


class InfrastructureError(HeadraceError):
    """Something around the episode failed. The episode gets no reward and is owed again."""

    final = False
    """True: trying again cannot help any episode, so the run stops."""
    retry = True
    """False: trying the same episode again in this run cannot help it."""


class ImageError(InfrastructureError):
    """An image or root filesystem could not be built, found or unpacked."""

    retry = False


class SandboxError(InfrastructureError):
    """A sandbox did not start, was lost, or broke its contract."""


class SandboxFull(SandboxError):
    """What the agent left running keeps every process of ours from starting. Its own doing."""


class SandboxEnded(SandboxError):
    """A started sandbox ended by itself while the engine is well: memory, or what ran inside.

    One that ends so on every try is the agent's doing (see `engine/driver.py`).
    """


class ProviderGone(SandboxError):
    """The engine behind every sandbox stopped answering.

    Final for what is open; a run waits `engine.outage_s` for it to come back.
    """

    final = True


class PolicyError(InfrastructureError):
    """A policy call failed for good (its own retries are spent)."""

    retry = False


class ServerGone(PolicyError):
    """The model server behind every call stopped answering; it may be started again."""

    retry = True


class ServerLost(ServerGone):
    """The model server is gone and its restarts are spent."""

    final = True


class StoreError(InfrastructureError):
    """A record could not be made durable, for instance on a full disk. The run stops."""

    final = True


class ContractError(HeadraceError):
    """A caller broke a documented rule, such as two commands at once in one shell."""


@contextmanager
def boundary(error: type[InfrastructureError], doing: str) -> Iterator[None]:
    """Attribute what goes wrong inside the block to `error`, once.

    Errors of headrace pass unchanged, and so do cancellation and exit. Anything else is wrapped
    as `error` with `doing` in front, keeping the cause.
    """
    try:
        yield
    except HeadraceError:
        raise
    except Exception as e:  # the one place a foreign error is given headrace's type
        detail = str(e) or type(e).__name__
        raise error(f"{doing}: {detail}") from e
