"""The vocabulary: one frozen record for each thing headrace speaks of.

Rule: data only. What can be derived is a property; behaviour lives in the folders. Records that
are stored forbid unknown fields and carry `EPISODE_SCHEMA`, so that a reader never guesses.
"""

from array import array
from enum import StrEnum
from typing import Any

import msgspec

EPISODE_SCHEMA = 3


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """Base of everything that is stored or passed between the folders.

    Frozen data makes no cycles, so the cyclic collector need not look at it (`gc=False`): thousands
    of episodes are hundreds of thousands of records.
    """


# --- tasks ----------------------------------------------------------------------------------


class NetworkPolicy(Record, frozen=True, kw_only=True):
    """What one phase of an episode may reach."""

    mode: str = "public"
    """`public`, `none` or `allowlist`: what the task asks for; the run decides (see configs)."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names, `*.suffix`, addresses and networks; with `allowlist` only."""


class HealthCheck(Record, frozen=True, kw_only=True):
    """A command that must succeed before the agent begins; Harbor's and Docker's rules."""

    command: str
    interval_s: float = 5.0
    timeout_s: float = 30.0
    start_period_s: float = 0.0
    """Failures within this time do not count."""
    start_interval_s: float = 5.0
    """Between checks within `start_period_s`."""
    retries: int = 3
    """So many failures in a row are one too many."""


class McpServer(Record, frozen=True, kw_only=True):
    """A tool server the task offers; listed in the prompt, never started by us."""

    name: str
    transport: str = "sse"
    """`stdio`, `sse` or `streamable-http`."""
    url: str | None = None
    command: str | None = None
    args: tuple[str, ...] = ()


class Artifact(Record, frozen=True, kw_only=True):
    """A file or folder of the sandbox that is kept with the run, or handed to the verifier."""

    source: str
    """Path in the sandbox; relative to the working directory."""
    destination: str | None = None
    """Path in the artifact folder; None: the source's own path."""
    exclude: tuple[str, ...] = ()
    """Patterns that `tar --exclude` understands."""
    service: str = "main"


class CollectHook(Record, frozen=True, kw_only=True):
    """A command that runs after the agent and before artifacts are collected; best effort."""

    command: str
    service: str = "main"
    timeout_s: float = 60.0
    user: str | None = None


class ComposeFile(Record, frozen=True, kw_only=True):
    """Several containers: the task's own compose file, run by `docker compose`."""

    path: str
    """Absolute path."""
    context: str
    """Absolute path of the folder its relative paths start from."""
    service: str = "main"
    """The service the agent works in."""
    services: tuple[str, ...] = ("main",)
    """All of them."""


class EnvironmentRecipe(Record, frozen=True, kw_only=True):
    """How the world of a task is made."""

    image: str | None = None
    """A ready image, such as `headrace/base:bookworm`. None: build `dockerfile`."""
    dockerfile: str | None = None
    """Absolute path of the Dockerfile, if there is one."""
    context: str | None = None
    """Absolute path of the build context (the task's `environment/` folder)."""
    compose: ComposeFile | None = None
    """Set: the sandbox is a service among several; `image` and `dockerfile` may be None."""
    upload_context: bool = False
    """A ready image and no Dockerfile: the context's files go into the working directory."""
    workdir: str | None = None
    """Working directory of every command; None: the image's own."""
    env: dict[str, str] = {}
    """Variables of every command, templates already resolved."""
    cpus: float | None = None
    memory_mb: int | None = None
    storage_mb: int | None = None
    network: NetworkPolicy = NetworkPolicy()
    """Of every phase that names none of its own."""
    healthcheck: HealthCheck | None = None
    """Runs once after the start, before the agent."""
    mcp_servers: tuple[McpServer, ...] = ()
    build_timeout_s: float = 600.0


class AgentRecipe(Record, frozen=True, kw_only=True):
    """What the task grants the agent."""

    timeout_s: float | None = None
    user: str | None = None
    """None: the image's own user."""
    network: NetworkPolicy | None = None
    """None: the environment's."""


class VerifierRecipe(Record, frozen=True, kw_only=True):
    """How the task is graded."""

    kind: str = "harbor"
    """`harbor` (a reward file) or `terminal-bench-1` (parsed output); see `verifiers/registry`."""
    tests: tuple[str, ...] = ()
    """Absolute paths of folders whose contents go to `/tests` after the agent has ended, later
    ones over earlier ones. Empty: the verifier's own image holds them."""
    script: str = "test.sh"
    """File name in `/tests`, or, for `terminal-bench-1`, absolute path on this machine."""
    timeout_s: float = 600.0
    env: dict[str, str] = {}
    user: str | None = None
    """None: the image's own user."""
    network: NetworkPolicy | None = None
    """None: the environment's."""
    environment: EnvironmentRecipe | None = None
    """Set: the tests run in a sandbox of their own, which gets the artifacts."""
    collect: tuple[CollectHook, ...] = ()
    parser: str = ""
    """`terminal-bench-1` only: `pytest`, `swebench`, `swelancer`, `mlebench` or `sweperf`."""
    same_shell: bool = False
    """`terminal-bench-1` only: the tests run in the agent's own shell."""


class SolutionRecipe(Record, frozen=True, kw_only=True):
    """The reference solution, run by the `oracle` policy only."""

    path: str
    """Absolute path of a folder, or of one file, that goes to `target`."""
    target: str = "/solution"
    script: str = "solve.sh"
    """Name in `target` of what is run."""
    env: dict[str, str] = {}
    keystrokes: "tuple[Command, ...]" = ()
    """Set: typed into the terminal in place of running `script` (`solution.yaml`)."""


class StepRecipe(Record, frozen=True, kw_only=True):
    """One step of a task of several: its own instruction, time and tests in one sandbox."""

    name: str
    instruction: str
    agent: AgentRecipe
    verifier: VerifierRecipe
    solution: SolutionRecipe | None = None
    files: str | None = None
    """Absolute path of a folder that goes into the working directory before the step; a
    `setup.sh` in it is run there."""
    healthcheck: HealthCheck | None = None
    min_reward: dict[str, float] = {}
    """By reward key: below it the steps that follow are not done. A missing key is below."""
    artifacts: tuple[Artifact, ...] = ()


class Task(Record, frozen=True, kw_only=True):
    """One thing to do in a terminal, read from a task folder."""

    name: str
    """The format's own name (`org/slug`), else the folder's."""
    digest: str
    """sha256 over names, modes and contents of the task's files: the identity of the task."""
    path: str
    format: str
    """`harbor` or `terminal-bench-1`."""
    instruction: str
    """Empty when there are `steps`."""
    environment: EnvironmentRecipe
    agent: AgentRecipe
    verifier: VerifierRecipe
    solution: SolutionRecipe | None = None
    steps: tuple[StepRecipe, ...] = ()
    """Set: done in this order in one sandbox; the task's own agent, verifier and solution are
    then only what a step inherits, and the reader has put that into each step already."""
    reward_strategy: str = "mean"
    """Of the steps' rewards: `mean` over the steps that were begun, or `final`."""
    artifacts: tuple[Artifact, ...] = ()
    category: str | None = None
    difficulty: str | None = None
    tags: tuple[str, ...] = ()
    metadata: dict[str, Any] = {}
    inert: tuple[str, ...] = ()
    """Dotted names of fields that were read but are not acted on."""


# --- commands and turns ---------------------------------------------------------------------


class Command(Record, frozen=True, kw_only=True):
    """One command for the sandbox's shell, or keystrokes for its terminal."""

    text: str
    timeout_s: float | None = None
    """None: the run's `limits.command_timeout_s`. For keystrokes: the longest wait."""
    keys: bool = False
    """`text` is typed into the terminal (see `sandbox.base.Terminal`), not run by the shell."""


class Upload(Record, frozen=True, kw_only=True):
    """A folder of the host that goes into the sandbox before the commands of an action."""

    source: str
    """A folder's contents go into `target`; a file goes there under its own name."""
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
    screen: bytes | None = None
    """Keystrokes only: the visible screen afterwards, UTF-8, lines without trailing blanks."""


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
    step: str = ""
    """Name of the task's step it belongs to; empty for a task without steps."""


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


class OtherReading(Record, frozen=True, kw_only=True):
    """What the other way to read the same tests says, where the two ways differ."""

    compat: str
    """`strict`: as the official harness reads them; `correct`: as they should be."""
    reward: float | None
    reason: str
    """Why the two differ."""


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
    other: OtherReading | None = None

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
    """Where an episode's seconds went. Storing comes after its record: the run's meters have it."""

    queue_s: float = 0.0
    """Until it was admitted, in the try that is stored."""
    prepare_s: float = 0.0
    """Image, sandbox, files and health together."""
    image_s: float = 0.0
    """Of `prepare_s`: until the image was there."""
    start_s: float = 0.0
    """Of `prepare_s`: until the sandbox answered."""
    act_s: float = 0.0
    policy_s: float = 0.0
    """Of `act_s`."""
    command_s: float = 0.0
    """Of `act_s`."""
    wait_s: float = 0.0
    """For a place among the verifiers."""
    verify_s: float = 0.0


class Failure(Record, frozen=True, kw_only=True):
    """An error as data."""

    stage: str
    """`prepare`, `act` or `verify`."""
    error: str
    """The class in `headrace.errors`."""
    message: str


class StepResult(Record, frozen=True, kw_only=True):
    """How one step of a task of several ended."""

    name: str
    stop_reason: StopReason
    stop_detail: str = ""
    verdict: Verdict


class Collected(Record, frozen=True, kw_only=True):
    """One artifact entry and what became of it."""

    source: str
    destination: str
    """Relative to the episode's folder under the run's `artifacts/`."""
    status: str
    """`ok`, `empty`, `missing` or `failed`."""
    service: str = "main"
    detail: str = ""


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
    """What the policy was shown first, if it renders text; for a model, in its template."""
    opening: str = ""
    """The first message in `prompt`, before any template; empty where there is none."""
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
    steps: tuple[StepResult, ...] = ()
    """Of a task of several steps: those that were begun, in order; `verdict` sums them up."""
    artifacts: tuple[Collected, ...] = ()
    started_at: float = 0.0
    """Unix seconds."""

    @property
    def sampled_tokens(self) -> int:
        return sum(span.end - span.start for s in self.segments for span in s.spans)
