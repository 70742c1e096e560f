"""The vocabulary: one frozen record for each thing headrace speaks of.

Rule: data only. What can be derived is a property; behaviour lives in the folders. Records that
are stored forbid unknown fields and carry `EPISODE_SCHEMA`, so that a reader never guesses.
"""

from array import array
from enum import StrEnum
from typing import Any

import msgspec

EPISODE_SCHEMA = 1


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of everything that is stored or passed between the folders."""


# --- tasks ----------------------------------------------------------------------------------


class EnvironmentRecipe(Record, frozen=True, kw_only=True):
    """How the world of a task is made."""

    image: str | None = None
    """A ready image, such as `headrace/base:bookworm`. None: build `dockerfile`."""
    dockerfile: str | None = None
    """Absolute path of the Dockerfile, if there is one."""
    context: str | None = None
    """Absolute path of the build context (the task's `environment/` folder)."""
    upload_context: bool = False
    """A ready image and no Dockerfile: the context's files go into the working directory."""
    workdir: str | None = None
    """Working directory of every command; None: the image's own."""
    env: dict[str, str] = {}
    """Variables of every command, templates already resolved."""
    cpus: float | None = None
    memory_mb: int | None = None
    storage_mb: int | None = None
    network: str = "public"
    """`public`, `none` or `allowlist`: what the task asks for; the run decides (see configs)."""
    build_timeout_s: float = 600.0


class AgentRecipe(Record, frozen=True, kw_only=True):
    """What the task grants the agent."""

    timeout_s: float | None = None
    user: str | None = None


class VerifierRecipe(Record, frozen=True, kw_only=True):
    """How the task is graded; Harbor's contract."""

    tests: str
    """Absolute path of the folder that goes to `/tests` after the agent has ended."""
    timeout_s: float = 600.0
    env: dict[str, str] = {}
    user: str | None = None


class SolutionRecipe(Record, frozen=True, kw_only=True):
    """The reference solution, run by the `oracle` policy only."""

    path: str
    """Absolute path of the folder that goes to `/solution`."""
    env: dict[str, str] = {}


class Task(Record, frozen=True, kw_only=True):
    """One thing to do in a terminal, read from a task folder."""

    name: str
    """The format's own name (`org/slug`), else the folder's."""
    digest: str
    """sha256 over names, modes and contents of the task's files: the identity of the task."""
    path: str
    format: str
    """`harbor`"""
    instruction: str
    environment: EnvironmentRecipe
    agent: AgentRecipe
    verifier: VerifierRecipe
    solution: SolutionRecipe | None = None
    category: str | None = None
    difficulty: str | None = None
    tags: tuple[str, ...] = ()
    metadata: dict[str, Any] = {}
    inert: tuple[str, ...] = ()
    """Dotted names of fields that were read but are not acted on yet."""


# --- commands and turns ---------------------------------------------------------------------


class Command(Record, frozen=True, kw_only=True):
    """One command for the sandbox's shell."""

    text: str
    timeout_s: float | None = None
    """None: the run's `limits.command_timeout_s`."""


class Upload(Record, frozen=True, kw_only=True):
    """A folder of the host that goes into the sandbox before the commands of an action."""

    source: str
    target: str


class CommandResult(Record, frozen=True, kw_only=True):
    """What a command did. Output is raw bytes, cut from the middle when too long."""

    exit_code: int | None
    """None when there is none: the command timed out or its shell was lost without one."""
    stdout: bytes = b""
    stderr: bytes = b""
    stdout_cut: int = 0
    """Bytes left out of the middle of stdout."""
    stderr_cut: int = 0
    timed_out: bool = False
    """The command was killed at its deadline. Its shell, directory and variables live on."""
    shell_lost: bool = False
    """The shell itself ended; the next command runs in a fresh one."""
    duration_s: float = 0.0


class Sample(Record, frozen=True, kw_only=True):
    """The tokens of one policy call, as the server saw and sent them."""

    prompt_ids: tuple[int, ...]
    """Tokens between the previous sample (or the start of the segment) and this one."""
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str
    """`stop`, `length` or `abort`, as the server says."""
    new_segment: bool = False
    """The context was reset: `prompt_ids` is a whole prompt that extends nothing."""


class Action(Record, frozen=True, kw_only=True):
    """What a policy decided in one turn."""

    text: str
    """The policy's own words; for a model, the decoded sample."""
    commands: tuple[Command, ...] = ()
    uploads: tuple[Upload, ...] = ()
    done: bool = False
    """The policy says it is finished; the commands still run."""
    problems: tuple[str, ...] = ()
    """Why the text could not be read as an action; the policy hears of it next turn."""
    warnings: tuple[str, ...] = ()
    sample: Sample | None = None
    policy_s: float = 0.0
    """Seconds the call took, queueing included."""


class Turn(Record, frozen=True, kw_only=True):
    """One policy call and what came of it."""

    text: str
    uploads: tuple[Upload, ...] = ()
    commands: tuple[Command, ...] = ()
    results: tuple[CommandResult, ...] = ()
    """One for each command that ran; shorter than `commands` if the episode ended between."""
    done: bool = False
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    policy_s: float = 0.0
    command_s: float = 0.0


class Span(Record, frozen=True, kw_only=True, array_like=True):
    """Tokens `[start, end)` of a segment that the policy sampled in turn `turn`."""

    turn: int
    start: int
    end: int


class Segment(Record, frozen=True, kw_only=True):
    """One unbroken token stream, exactly as the server saw it.

    Token ids are little-endian uint32 and log-probabilities little-endian float32, packed in
    bytes: a list of Python integers is ten times the size in memory and far slower to read.
    """

    token_ids: bytes
    logprobs: bytes
    """One float per token; 0.0 where the policy did not sample."""
    spans: tuple[Span, ...]

    def tokens(self) -> "array[int]":
        """The token ids; shape (n,)."""
        return _unpack("I", self.token_ids)

    def token_logprobs(self) -> "array[float]":
        """Log-probabilities of the tokens; shape (n,), 0.0 where `loss_mask` is 0."""
        return _unpack("f", self.logprobs)

    def loss_mask(self) -> bytearray:
        """1 where the policy sampled the token, else 0; shape (n,)."""
        mask = bytearray(len(self.token_ids) // 4)
        for span in self.spans:
            mask[span.start : span.end] = b"\x01" * (span.end - span.start)
        return mask


def _unpack(code: str, data: bytes) -> "array[Any]":
    out: array[Any] = array(code)
    out.frombytes(data)
    if _BIG_ENDIAN:
        out.byteswap()
    return out


_BIG_ENDIAN = array("H", [1]).tobytes() != b"\x01\x00"


# --- verdicts and episodes ------------------------------------------------------------------


class StopReason(StrEnum):
    """Why an episode's agent phase ended. `engine/limits.py` holds the order of the checks."""

    DONE = "done"
    """The policy said so."""
    MAX_TURNS = "max_turns"
    MAX_TOKENS = "max_tokens"
    """The budget of sampled tokens is spent."""
    CONTEXT_FULL = "context_full"
    """The next prompt does not fit the model's context."""
    AGENT_TIMEOUT = "agent_timeout"
    POLICY_ERROR = "policy_error"
    SANDBOX_ERROR = "sandbox_error"
    CANCELLED = "cancelled"


class TestOutcome(Record, frozen=True, kw_only=True, array_like=True):
    """One test of the verifier."""

    __test__ = False  # not a test class, whatever pytest thinks of the name

    name: str
    status: str
    """`passed`, `failed`, `skipped` or `error`."""


class VerdictFault(StrEnum):
    """Whose failure left an episode without a reward."""

    INFRASTRUCTURE = "infrastructure"
    """The episode is tried again within its budget, then left out of every rate, with a count."""
    VERIFIER = "verifier"
    """The verifier ran and left no readable reward. Counts as not solved, as Harbor counts it."""


class Verdict(Record, frozen=True, kw_only=True):
    """What the verifier found in the sandbox the agent left behind."""

    reward: float | None
    """In [0, 1], or None: then `fault` and `reason` say why. Infrastructure never scores 0."""
    fault: VerdictFault | None = None
    reason: str | None = None
    """A type in snake case and a sentence, such as `reward_missing: ...`."""
    rewards: dict[str, float] = {}
    """Every number the verifier wrote, unclamped."""
    tests: tuple[TestOutcome, ...] = ()
    log_tail: str = ""
    """The end of the verifier's output."""
    duration_s: float = 0.0

    @property
    def passed(self) -> bool:
        return self.reward is not None and self.reward >= 1.0

    @property
    def pass_ratio(self) -> float | None:
        """Share of the counted tests that passed; skipped ones are not counted."""
        counted = [t for t in self.tests if t.status != "skipped"]
        if not counted:
            return None
        return sum(t.status == "passed" for t in counted) / len(counted)


class Timing(Record, frozen=True, kw_only=True):
    """Where an episode's seconds went."""

    queue_s: float = 0.0
    prepare_s: float = 0.0
    act_s: float = 0.0
    policy_s: float = 0.0
    command_s: float = 0.0
    verify_s: float = 0.0


class Failure(Record, frozen=True, kw_only=True):
    """An error as data."""

    stage: str
    """`prepare`, `act` or `verify`."""
    error: str
    """The class in `headrace.errors`."""
    message: str


class Episode(Record, frozen=True, kw_only=True):
    """One finished attempt at one task by one policy: the record in the shards."""

    schema: int = EPISODE_SCHEMA
    id: str
    """Digest of task, policy and sample: the same attempt has the same id in every run."""
    task: str
    task_digest: str
    category: str | None = None
    difficulty: str | None = None
    sample: int
    """0, 1, ... within the group."""
    tries: int = 1
    """How often this slot was tried; more than 1 after infrastructure failures."""
    policy: str
    policy_version: str
    """Digest of everything that decides what the policy does: model, sampling, protocol."""
    provider: str
    instruction: str
    prompt: str = ""
    """What the policy was shown first, if it renders text."""
    turns: tuple[Turn, ...] = ()
    observations: tuple[str, ...] = ()
    """What the policy was shown after turn i; one shorter than `turns` when it ended there."""
    segments: tuple[Segment, ...] = ()
    """The exact token stream; empty for policies without tokens."""
    stop_reason: StopReason
    stop_detail: str = ""
    verdict: Verdict
    failure: Failure | None = None
    timing: Timing = Timing()
    started_at: float = 0.0
    """Unix seconds."""

    @property
    def sampled_tokens(self) -> int:
        return sum(span.end - span.start for s in self.segments for span in s.spans)
