"""The compose file of a Terminal-Bench 1.0 task: one container, or work for `docker compose`.

Rule: pure. A single service that only says how its image is built, and what a sandbox has anyway
(variables, a working directory, a user, limits, the harness's log folders, a command that waits),
needs no compose: it becomes a plain recipe, which runs on every provider. Anything else is named
in `features`, and `docker compose` runs the file as it is. Nothing is dropped in silence.
"""

import difflib
import math
import platform
import posixpath
import re
import shlex
from collections.abc import Mapping
from typing import Any

from headrace.errors import TaskError
from headrace.tasks.compose_variables import Variables
from headrace.tasks.harbor_fields import MAX_ENV_BYTES
from headrace.tasks.keyed import show
from headrace.types import Record

CLIENT = "client"
CLIENT_VARIABLE = "T_BENCH_TASK_DOCKER_CLIENT_CONTAINER_NAME"
PROJECT_VARIABLE = "COMPOSE_PROJECT_NAME"
"""The official harness names the project as the client's container."""
TEST_DIR = "/tests"
_READ = {
    "build", "image", "command", "entrypoint", "environment", "volumes", "working_dir", "user",
    "network_mode", "deploy", "cpus", "mem_limit", "pids_limit", "platform",
}  # fmt: skip
_FREE = {
    "container_name", "tty", "stdin_open", "init", "restart", "stop_grace_period", "stop_signal",
    "labels", "logging", "pull_policy", "expose", "attach", "annotations", "scale",
    "mem_reservation", "memswap_limit", "mem_swappiness", "cpu_shares",
}  # fmt: skip
"""Change nothing that the agent or the tests can see, or only what is ours to decide."""
_COMPOSE = {
    "blkio_config", "cap_add", "cap_drop", "cgroup", "cgroup_parent", "configs", "cpu_count",
    "cpu_percent", "cpu_period", "cpu_quota", "cpu_rt_period", "cpu_rt_runtime", "cpuset",
    "credential_spec", "depends_on", "develop", "device_cgroup_rules", "devices", "dns", "dns_opt",
    "dns_search", "domainname", "env_file", "extends", "external_links", "extra_hosts", "gpus",
    "group_add", "healthcheck", "hostname", "ipc", "isolation", "links", "mac_address", "models",
    "networks", "oom_kill_disable", "oom_score_adj", "pid", "ports", "post_start", "pre_stop",
    "privileged", "profiles", "provider", "read_only", "runtime", "secrets", "security_opt",
    "shm_size", "storage_opt", "sysctls", "tmpfs", "ulimits", "userns_mode", "uts",
    "volumes_from",
}  # fmt: skip
_BUILD_FREE = {"labels", "tags", "pull", "no_cache", "cache_from", "cache_to", "provenance", "sbom"}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([bkmg]?)b?", re.IGNORECASE)
_BYTES = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_IDLE = re.compile(
    r"(?:exec )?(?:sleep (?:infinity|inf|[0-9]+[smhd]?)|tail -[fF] /dev/null|cat"
    r"|(?:/bin/)?(?:ba)?sh|while (?:true|:) ?; ?do sleep [0-9]+[smhd]? ?; ?done)?;?"
)
_LOG_FOLDERS = re.compile(r"\$\{?T_BENCH_TASK_(?:AGENT_)?LOGS_PATH\}?")


class Client(Record, frozen=True, kw_only=True):
    """What the service the agent works in asks for."""

    service: str
    services: tuple[str, ...]
    features: tuple[str, ...]
    """Why `docker compose` is needed; empty: it is not."""
    image: str | None = None
    """A ready image; None: it is built."""
    context: str = "."
    """Of the build; relative to the task folder."""
    dockerfile: str = "Dockerfile"
    """Relative to `context`."""
    workdir: str | None = None
    user: str | None = None
    env: dict[str, str] = {}
    cpus: float | None = None
    memory_mb: int | None = None
    network: str = "public"
    inert: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def interpret(document: Any, variables: Variables) -> Client:
    """The client of a parsed compose file. `variables` has the `T_BENCH_` ones too."""
    services = _services(document)
    warnings: list[str] = []
    name = _choose(services, warnings)
    reader = _Reader(name, services[name], variables, warnings)
    features = [f"{len(services)} services ({', '.join(services)})"] if len(services) > 1 else []
    features += [key for key in ("include",) if document.get(key)]
    return reader.client(tuple(services), features)


def read_service(name: str, service: Mapping[str, Any], variables: Variables) -> Client:
    """What one service asks for, whatever its format calls it."""
    return _Reader(name, service, variables, []).client((name,), [])


def variables_of(task: str, environ: Mapping[str, str], extra: Mapping[str, str]) -> Variables:
    """What a plain recipe's values may name: the harness's variables, ours, those of `.env`.

    This machine's come before the others, as with the official harness.
    """
    prefix = f"tb__{task}".replace(".", "-")
    own = {
        "T_BENCH_TASK_DOCKER_CLIENT_CONTAINER_NAME": prefix,
        PROJECT_VARIABLE: prefix,
        "T_BENCH_TASK_DOCKER_CLIENT_IMAGE_NAME": f"{prefix}__client",
        "T_BENCH_TASK_DOCKER_NAME_PREFIX": prefix,
        "T_BENCH_CONTAINER_LOGS_PATH": "/logs",
        "T_BENCH_CONTAINER_AGENT_LOGS_PATH": "/agent-logs",
        "T_BENCH_TEST_DIR": TEST_DIR,
        "T_BENCH_TASK_LOGS_PATH": "/logs",
        "T_BENCH_TASK_AGENT_LOGS_PATH": "/agent-logs",
    }
    return Variables({**extra, **own, **environ})


def _services(document: Any) -> dict[str, dict[str, Any]]:
    if document is None:
        raise TaskError("the file says nothing")
    services = document.get("services") if isinstance(document, dict) else None
    if not isinstance(services, dict) or not services:
        raise TaskError(f"services: expected at least one service, found {show(services)}")
    for name, service in services.items():
        if not isinstance(service, dict):
            raise TaskError(f"services.{name}: expected keys and values, found {show(service)}")
    _refuse_cycles(services)
    return services


def _refuse_cycles(services: Mapping[str, dict[str, Any]]) -> None:
    """`depends_on` must name services that are there, and end somewhere."""
    waits = {name: _names(service.get("depends_on")) for name, service in services.items()}
    for name, others in waits.items():
        for other in others:
            if other not in services:
                raise TaskError(f"services.{name}.depends_on: there is no service {other!r}")
    left = dict(waits)
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    if left:
        raise TaskError(f"services: {', '.join(left)} wait for each other (depends_on)")


def _names(value: Any) -> set[str]:
    items = value if isinstance(value, list | dict) else ()
    return {item for item in items if isinstance(item, str)}


def _choose(services: Mapping[str, dict[str, Any]], warnings: list[str]) -> str:
    """The service whose container is the harness's client."""
    named = [
        name for name, service in services.items()
        if any(variable in str(service.get("container_name", ""))
               for variable in (CLIENT_VARIABLE, PROJECT_VARIABLE))
    ]  # fmt: skip
    if len(named) == 1:
        return named[0]
    if named:
        raise TaskError(f"services: {', '.join(named)} have the client's container_name; "
                        "one of them can")  # fmt: skip
    if CLIENT in services:
        warnings.append(f"services.client has no container_name: ${{{CLIENT_VARIABLE}}}")
        return CLIENT
    if len(services) == 1:
        (sole,) = services
        warnings.append(f"services: no service is called client; the only one, {sole}, is taken")
        return sole
    raise TaskError(
        f"services: expected one with container_name: ${{{CLIENT_VARIABLE}}}, or one called "
        f"client, found {', '.join(services)}"
    )


class _Reader:
    """Reads one service; every error carries the key."""

    def __init__(
        self, name: str, service: Mapping[str, Any], variables: Variables, warnings: list[str]
    ) -> None:
        self.name = name
        self.service = service
        self.variables = variables
        self.warnings = warnings
        self.inert: list[str] = []

    def client(self, services: tuple[str, ...], features: list[str]) -> Client:
        features += self._unread()
        image, context, dockerfile = self._image(features)
        features += [*self._command(), *self._volumes(), *self._deploy_features()]
        limits = self._limits()
        network = self._network(features)
        platform_name = self._text("platform")
        if platform_name and platform.machine() not in _machines(platform_name):
            self.inert.append(self._at("platform"))
        return Client(
            service=self.name,
            services=services,
            features=tuple(features),
            image=image,
            context=context,
            dockerfile=dockerfile,
            workdir=self._workdir(),
            user=self._text("user"),
            env=self._environment(),
            cpus=self._cpus(limits),
            memory_mb=self._memory_mb(limits),
            network=network,
            inert=tuple(self.inert),
            warnings=tuple(self.warnings),
        )

    def _at(self, key: str) -> str:
        return f"services.{self.name}.{key}"

    def _wrong(self, key: str, expected: str, value: Any) -> TaskError:
        return TaskError(f"{self._at(key)}: expected {expected}, found {show(value)}")

    def _fill(self, key: str, value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise self._wrong(key, "text", value)
        return self.variables.fill(str(value), self._at(key))

    def _text(self, key: str) -> str | None:
        value = self.service.get(key)
        return None if value is None else self._fill(key, value).strip() or None

    def _unread(self) -> list[str]:
        """Keys that matter and that no plain recipe has."""
        found = []
        known = _READ | _FREE | _COMPOSE
        for key, value in self.service.items():
            if key in _READ | _FREE or key.startswith("x-") or value in (None, False, [], {}, ""):
                continue
            if key not in known:
                near = difflib.get_close_matches(key, sorted(known), n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                self.warnings.append(f"unknown key {self._at(key)!r}{hint}")
            found.append(key)
        return found

    def _image(self, features: list[str]) -> tuple[str | None, str, str]:
        """Ready image, build context and Dockerfile."""
        build, image = self.service.get("build"), self._text("image")
        if build is None:
            ours = "T_BENCH_" in str(self.service.get("image", ""))
            if image is None or ours:
                self.warnings.append(f"{self._at('build')}: missing; the Dockerfile is taken")
                return None, ".", "Dockerfile"
            return image, ".", "Dockerfile"
        if isinstance(build, str):
            build = {"context": build}
        if not isinstance(build, dict):
            raise self._wrong("build", "a folder, or context and dockerfile", build)
        free = _BUILD_FREE | {"context", "dockerfile"}
        features += [f"build.{key}" for key, value in build.items() if key not in free and value]
        context = self._fill("build.context", build.get("context") or ".")
        if "://" in context or context.startswith("git@"):
            features.append("build.context from the network")
            context = "."
        dockerfile = self._fill("build.dockerfile", build.get("dockerfile") or "Dockerfile")
        return None, context, dockerfile

    def _command(self) -> list[str]:
        """A command that does more than wait is the container's work; we would not run it."""
        words = [*self._words("entrypoint"), *self._words("command")]
        if len(words) > 2 and words[0].rpartition("/")[2] in ("sh", "bash") and "c" in words[1]:
            words = words[2:]
        text = " ".join(" ".join(words).split())
        return [] if _IDLE.fullmatch(text) else [f"command ({show(text)})"]

    def _words(self, key: str) -> list[str]:
        value = self.service.get(key)
        if value is None:
            return []
        if isinstance(value, list):
            return [self._fill(key, item) for item in value]
        try:
            return shlex.split(self._fill(key, value))
        except ValueError as e:
            raise self._wrong(key, f"a command ({e})", value) from None

    def _volumes(self) -> list[str]:
        """All mounts but the harness's two log folders."""
        volumes = self.service.get("volumes")
        if volumes is None:
            return []
        if not isinstance(volumes, list):
            raise self._wrong("volumes", "a list", volumes)
        found = []
        for volume in volumes:
            source = volume.get("source", "") if isinstance(volume, dict) else volume
            if not _LOG_FOLDERS.match(str(source)):
                found.append(f"volumes ({show(volume)})")
        return found

    def _deploy(self) -> dict[str, Any]:
        deploy = self.service.get("deploy") or {}
        resources = deploy.get("resources") or {} if isinstance(deploy, dict) else None
        if not isinstance(resources, dict):
            raise self._wrong("deploy", "resources with limits", deploy)
        return resources

    def _deploy_features(self) -> list[str]:
        reserved = self._deploy().get("reservations") or {}
        devices = isinstance(reserved, dict) and reserved.get("devices")
        return ["deploy.resources.reservations.devices"] if devices else []

    def _limits(self) -> dict[str, Any]:
        limits = self._deploy().get("limits") or {}
        if not isinstance(limits, dict):
            raise self._wrong("deploy.resources.limits", "keys and values", limits)
        if limits.get("pids") or self.service.get("pids_limit"):
            self.inert.append(self._at("pids_limit"))
        return limits

    def _cpus(self, limits: Mapping[str, Any]) -> float | None:
        value = limits.get("cpus", self.service.get("cpus"))
        if value is None:
            return None
        text = self._fill("cpus", value)
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and number >= 0):
            raise self._wrong("cpus", "a number", text)
        return number or None

    def _memory_mb(self, limits: Mapping[str, Any]) -> int | None:
        value = limits.get("memory", self.service.get("mem_limit"))
        if value is None:
            return None
        text = self._fill("memory", value).strip()
        match = _SIZE.fullmatch(text)
        if match is None or len(match[1]) > 15:
            raise self._wrong("memory", "a size such as 2G or 512m", text)
        amount = float(match[1]) * _BYTES[match[2].lower()]
        return math.ceil(amount / (1 << 20)) or None

    def _network(self, features: list[str]) -> str:
        mode = self._text("network_mode")
        if mode not in (None, "none", "bridge", "default"):
            features.append(f"network_mode ({mode})")
        return "none" if mode == "none" else "public"

    def _workdir(self) -> str | None:
        workdir = self._text("working_dir")
        if workdir is not None and not workdir.startswith("/"):
            raise self._wrong("working_dir", "an absolute path", workdir)
        return workdir and posixpath.normpath(workdir)

    def _environment(self) -> dict[str, str]:
        """Variables of every command; one without a value is taken from this machine."""
        value = self.service.get("environment")
        pairs: list[tuple[str, Any]] = []
        if isinstance(value, dict):
            pairs = list(value.items())
        elif isinstance(value, list):
            for item in value:
                name, equals, setting = self._fill("environment", item).partition("=")
                pairs.append((name, setting.replace("$", "$$") if equals else None))
        elif value is not None:
            raise self._wrong("environment", "variables", value)
        env = {
            name: text for name, setting in pairs if (text := self._set(name, setting)) is not None
        }
        size = sum(len(name.encode()) + len(text.encode()) for name, text in env.items())
        if size > MAX_ENV_BYTES:
            raise TaskError(f"{self._at('environment')}: expected at most {MAX_ENV_BYTES} bytes "
                            f"of variables, found {size}")  # fmt: skip
        return env

    def _set(self, name: str, setting: Any) -> str | None:
        if not (name.isidentifier() and name.isascii()):
            raise self._wrong("environment", "names of shell variables", name)
        if setting is None:
            text = self.variables.fill(f"${{{name}-}}", self._at("environment"))
            return text or None
        if isinstance(setting, bool):
            return str(setting).lower()
        text = self._fill(f"environment.{name}", setting)
        if "\0" in text:
            raise self._wrong(f"environment.{name}", "text without NUL", text)
        return text


def _machines(platform_name: str) -> tuple[str, ...]:
    """What `platform.machine` says for a platform such as `linux/amd64`."""
    word = platform_name.split("/")[1] if "/" in platform_name else platform_name
    return {"amd64": ("x86_64", "AMD64"), "arm64": ("aarch64", "arm64")}.get(word, (word,))
