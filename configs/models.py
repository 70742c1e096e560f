"""Everything a user may set, as pydantic models with the defaults.

Rule: every field has a docstring (it is the reference page), unknown keys are refused, units are
in the names. Loading, merging and error texts are in `configs/load.py`; nothing here does I/O.
"""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt

Seconds = Annotated[float, Field(gt=0)]
Port = Annotated[int, Field(ge=0, le=65535)]


class Section(BaseModel):
    """A table of the configuration file."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class TasksConfig(Section):
    """Which tasks to run."""

    source: str = "first-steps"
    """A folder of task folders, one task folder, or the name of a bundled pack."""
    include: tuple[str, ...] = ()
    """Shell patterns over task names; empty: all."""
    exclude: tuple[str, ...] = ()
    """Shell patterns over task names to leave out."""
    limit: PositiveInt | None = None
    """Take the first so many after the filters, in name order."""


class SandboxConfig(Section):
    """Where commands run."""

    provider: Literal["auto", "docker", "namespace"] = "auto"
    """`auto` takes Docker if its socket answers, else `namespace`."""
    docker_socket: str | None = None
    """Path of the engine's socket; None: `DOCKER_HOST`, else `/var/run/docker.sock`."""
    network: Literal["none", "task"] = "none"
    """`none` cuts every sandbox off; `task` gives each what its task asks for."""
    cpus: Annotated[float, Field(gt=0)] | None = 1.0
    """CPUs of a sandbox whose task names none; None: no limit."""
    memory_mb: PositiveInt | None = 2048
    """Memory of a sandbox whose task names none; None: no limit."""
    storage_mb: PositiveInt | None = None
    """What a sandbox whose task names no amount may write; None: the provider's own limit."""
    pids: PositiveInt | None = 512
    """Processes and threads of a sandbox; None: no limit."""
    warm: Annotated[int, Field(ge=0)] | None = None
    """Sandboxes that are kept open ahead of the episodes that come next; None: as many as
    `engine.preparing`."""
    max_output_bytes: PositiveInt = 65536
    """Kept of each of a command's stdout and stderr; the middle is cut."""


class SamplingConfig(Section):
    """How the model samples."""

    temperature: Annotated[float, Field(ge=0)] = 0.7
    """0: always the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the likeliest tokens that together have this probability; 1: all tokens."""
    top_k: int = 0
    """0: all tokens."""
    max_tokens: PositiveInt = 512
    """Sampled tokens of one call."""
    stop: tuple[str, ...] = ()
    """Further stop strings."""


class ServerConfig(Section):
    """The local vLLM servers."""

    replicas: PositiveInt = 1
    """Equal servers on this machine, each with its own GPUs or its own cores. A session stays with
    the one that has its prefix; one that dies is started again while the others go on."""
    host: str = "127.0.0.1"
    """The address they listen on."""
    port: Port = 0
    """0: a free one. A port that is taken is refused, with what holds it. Replicas take the next
    ones."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """`auto` takes a GPU if there is one, else the CPU."""
    start_timeout_s: Seconds = 600.0
    """How long it may take until it answers, loading the weights included."""
    restarts: Annotated[int, Field(ge=0)] = 2
    """How often each server that died is started again within one run."""
    max_model_len: PositiveInt | None = None
    """Context length; None: the model's own."""
    max_num_seqs: PositiveInt = 256
    """Requests the server works on at once."""
    kv_cache_gib: PositiveInt = 2
    """Size of the key-value cache; CPU only."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of the GPU's memory that the server may take."""
    enforce_eager: bool | None = None
    """None: eager on a CPU (it starts four times faster), graphs on a GPU."""
    args: tuple[str, ...] = ()
    """Further arguments for the server, as they are."""


def _are_addresses(given: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
    each = (given,) if isinstance(given, str) else given or ()
    for one in each:
        try:
            parts = urlsplit(one)
            host = parts.hostname or ""
            name = host.encode("ascii" if ":" in host else "idna")
            known = parts.scheme in ("http", "https") and parts.port != 0
            is_one = name and known and not (parts.query or parts.fragment)
        except ValueError:  # of the port or the name
            is_one = False
        if not is_one:
            raise ValueError(f"expected an address such as http://127.0.0.1:8000, found {one!r}")
    if len({one.rstrip("/").removesuffix("/v1") for one in each}) < len(each):
        raise ValueError("expected each server once, found one of them twice")
    return given


class VllmConfig(Section):
    """A model behind vLLM servers: those we start, or those that already run."""

    type: Literal["vllm"] = "vllm"
    """Which policy."""
    model: str = "smollm2-135m"
    """A folder with weights and tokenizer, or `smollm2-135m`, the small model of extra `cpu`."""
    base_url: Annotated[
        str | Annotated[tuple[str, ...], Field(min_length=1)] | None, AfterValidator(_are_addresses)
    ] = None
    """An existing server, such as `http://127.0.0.1:8000`, or a list of equal ones; None: start
    one."""
    served_model_name: str | None = None
    """The name under which an existing server has the model; None: what it lists first."""
    protocol: Literal["terminus-json", "shell-block"] = "terminus-json"
    """How the model's text becomes actions."""
    confirm: bool = False
    """Ask once more when an answer says the task is done, as Terminus-2 does; False: it ends."""
    structured: bool = False
    """Hand the protocol's schema or grammar to the server, so that every answer parses."""
    sampling: SamplingConfig = SamplingConfig()
    request_timeout_s: Seconds = 600.0
    """Deadline of one call."""
    retries: Annotated[int, Field(ge=0)] = 2
    """Further tries of a call that failed before any token came."""
    server: ServerConfig = ServerConfig()


class OracleConfig(Section):
    """Runs each task's reference solution."""

    type: Literal["oracle"] = "oracle"
    """Which policy."""


class NoopConfig(Section):
    """Does nothing and says it is done."""

    type: Literal["noop"] = "noop"
    """Which policy."""


class ScriptedConfig(Section):
    """A fixed list of commands, or of a model's answers, one turn each."""

    type: Literal["scripted"] = "scripted"
    """Which policy."""
    commands: tuple[str, ...] = ()
    """One command per turn."""
    answers: tuple[str, ...] = ()
    """In place of `commands`: what a model would say, one answer per turn, read by `protocol`."""
    protocol: Literal["terminus-json", "shell-block"] = "terminus-json"
    """How `answers` become actions."""
    confirm: bool = False
    """An episode of `answers` ends when two in a row say the task is done."""
    script: str | None = None
    """A TOML file: `commands = [...]` (or `answers`) for all tasks and
    `[tasks."NAME"] commands = [...]`."""


class ReplayConfig(Section):
    """Repeats the commands of a recorded run, episode by episode."""

    type: Literal["replay"] = "replay"
    """Which policy."""
    run: str
    """The run folder to replay."""


PolicyConfig = Annotated[
    VllmConfig | OracleConfig | NoopConfig | ScriptedConfig | ReplayConfig,
    Field(discriminator="type"),
]


class VerifierConfig(Section):
    """How what the agent left is graded."""

    compat: Literal["correct", "strict"] = "correct"
    """Where an official harness misreads its own tests, or leaves a step without a reward out of
    a mean, `strict` follows it; a verdict that differs between the two records both."""


class ImagesConfig(Section):
    """How images are built, before the episodes that need them."""

    building: PositiveInt = 2
    """Builds at once."""
    builder: Literal["auto", "classic", "buildx", "own", "buildah"] = "auto"
    """`auto`: the engine's classic builder and `docker buildx` where a file needs BuildKit; for
    `namespace` its own builder and `buildah` where a file needs more than that understands."""


class LimitsConfig(Section):
    """When an episode ends. The order of the checks is in `engine/limits.py`."""

    max_turns: PositiveInt = 20
    """Policy calls of an episode."""
    max_tokens: PositiveInt | None = None
    """Sampled tokens of an episode."""
    agent_timeout_s: Seconds | None = None
    """Seconds for the agent; None: what the task grants."""
    command_timeout_s: Seconds = 30.0
    """Seconds for one command that names no time of its own."""
    verifier_timeout_s: Seconds | None = None
    """Seconds for the verifier; None: what the task grants."""


class EngineConfig(Section):
    """How many at once."""

    live: PositiveInt | Literal["auto"] = "auto"
    """Episodes alive at once. `auto` follows the model server and the machine: more while both
    have room, fewer at once when one is overrun."""
    live_start: PositiveInt = 16
    """With `auto`: how many at first."""
    live_most: PositiveInt = 4096
    """With `auto`: never more."""
    processes: PositiveInt = 1
    """Engine processes that share the episodes, each with an event loop of its own; one drives some
    thousand turns a second. All bounds are for all of them together. Never more than processors."""
    preparing: PositiveInt = 4
    """Images and sandboxes being started at once."""
    verifying: PositiveInt = 4
    """Verifiers running at once."""
    tries: PositiveInt = 3
    """How often an episode is tried when the infrastructure fails."""
    retry_budget: Annotated[int, Field(ge=0)] | None = None
    """Further tries that all episodes may take together when the infrastructure fails. Once they
    are spent, a failed episode stays failed until the run is resumed; None: as `tries` allows."""
    outage_s: Annotated[float, Field(ge=0)] = 120.0
    """How long the sandbox engine may not answer at all. Meanwhile one start is tried every few
    seconds, and episodes that lost their sandbox wait without losing a try. Then the run stops."""
    order: Literal["plan", "longest-first"] = "plan"
    """`longest-first` starts the tasks first that took longest in `history`, and those it does not
    know before all, so that no long one is left for the end. Siblings stay together."""
    history: tuple[str, ...] = ()
    """Run folders that tell how long tasks take, besides the run's own."""
    metrics_port: Port | None = None
    """Serve Prometheus metrics at `http://127.0.0.1:PORT/metrics` while the run goes on; 0: a free
    port, which is told. None: do not."""
    min_group: PositiveInt | None = None
    """A group with so many graded episodes lets its stragglers go: those that have taken longer
    than `patience` times its slowest graded one. They leave no record and are not owed. That
    favours short trajectories. None: every group waits for all of its episodes."""
    patience: Annotated[float, Field(ge=1)] = 1.5
    """See `min_group`."""
    grace_s: Seconds = 20.0
    """After the first Ctrl-C: seconds for what is nearly done, before the rest is cancelled."""


class StoreConfig(Section):
    """How shards are written."""

    shard_mb: PositiveInt = 256
    """A shard is sealed at this size and the next one begun."""
    compression_level: Annotated[int, Field(ge=1, le=19)] = 3
    """Of zstd: higher is smaller and slower."""
    fsync: bool = True
    """False: a record is durable against a killed process, not against a power cut."""


class RunConfig(Section):
    """One run: tasks, policy, limits."""

    attempts: PositiveInt = 1
    """Episodes per task: the size of a group."""
    seed: int = 0
    """Seeds the model's sampling; each attempt gets its own from it."""
    tasks: TasksConfig = TasksConfig()
    policy: PolicyConfig = VllmConfig()
    """Who acts. Its `type` decides which keys the table has; the default is `vllm`."""
    sandbox: SandboxConfig = SandboxConfig()
    images: ImagesConfig = ImagesConfig()
    verifier: VerifierConfig = VerifierConfig()
    limits: LimitsConfig = LimitsConfig()
    engine: EngineConfig = EngineConfig()
    store: StoreConfig = StoreConfig()
