"""Which part of the machine each of several local servers gets: GPUs, or cores.

Rule: one server takes what vLLM takes by itself. Several never compete for a core, nor for a GPU
unless their shares of its memory fit on it together. It reads the machine and starts nothing.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from headrace.configs.models import ServerConfig
from headrace.errors import ConfigError
from headrace.types import Record

_RANKS = ("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size")
_SHORT = {"-tp": _RANKS[0], "-pp": _RANKS[1], "-dp": _RANKS[2]}


class Share(Record, frozen=True, kw_only=True):
    """What one server gets."""

    environment: dict[str, str] = {}
    shared: bool = False
    """Another server is on the same GPU."""


def share_of(config: ServerConfig, device: str, replica: int) -> Share:
    """What `replica` gets of this machine. `ConfigError` when it is too small for all."""
    if config.replicas == 1:
        return Share()
    if device == "cuda":
        return gpus_of(config, replica, visible_gpus())
    return cores_of(config, replica, physical_cores())


def gpus_of(config: ServerConfig, replica: int, gpus: Sequence[str]) -> Share:
    """The GPUs of one replica, by the names that CUDA has for them."""
    each = _ranks(config.args)
    wanted = config.replicas * each
    crowd = -(-wanted // max(1, len(gpus)))
    if each > len(gpus) or crowd * config.gpu_memory_utilization > 1:
        raise ConfigError(
            f"policy.server.replicas: expected {wanted} GPUs for {config.replicas} servers, found "
            f"{len(gpus)}. Ask for fewer; or let several share a GPU, with "
            f"policy.server.gpu_memory_utilization at most {1 / crowd:.2f}"
        )
    chosen = [gpus[(replica * each + rank) % len(gpus)] for rank in range(each)]
    return Share(environment={"CUDA_VISIBLE_DEVICES": ",".join(chosen)}, shared=crowd > 1)


def cores_of(config: ServerConfig, replica: int, cores: Sequence[int]) -> Share:
    """The cores of one replica; one is left to all else, as vLLM does, if there are enough.

    More replicas than cores: none is bound to any.
    """
    variable = "VLLM_CPU_OMP_THREADS_BIND"
    if variable in os.environ:
        return Share()
    if len(cores) < config.replicas:
        return Share(environment={variable: "nobind", "OMP_NUM_THREADS": "1"})
    cores = cores[:-1] if len(cores) > config.replicas else cores
    first = replica * len(cores) // config.replicas
    end = (replica + 1) * len(cores) // config.replicas
    return Share(environment={variable: ",".join(str(core) for core in cores[first:end])})


def visible_gpus() -> list[str]:
    """By number, or as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    devices = [path.name for path in Path("/dev").glob("nvidia[0-9]*")]
    if not devices and Path("/dev/dxg").exists():
        return ["0"]
    return [str(number) for number in range(len(devices))]


def physical_cores() -> list[int]:
    """One of the logical CPUs of each core that we may use."""
    ours = os.sched_getaffinity(0)
    cores: dict[frozenset[int], int] = {}
    for cpu in sorted(ours):
        cores.setdefault(_siblings(cpu) & ours or frozenset({cpu}), cpu)
    return list(cores.values())


def _siblings(cpu: int) -> frozenset[int]:
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        text = path.read_text()
    except OSError:
        return frozenset({cpu})
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def _ranks(args: Sequence[str]) -> int:
    """GPUs that one server uses, by its further arguments."""
    product = 1
    for name, value in re.findall(r"(?:^|\0)(-{1,2}[\w-]+)[=\0](\d+)(?=\0|$)", "\0".join(args)):
        if _SHORT.get(name, name.removeprefix("--").replace("_", "-")) in _RANKS:
            product *= int(value)
    return product
