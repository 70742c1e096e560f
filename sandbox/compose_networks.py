"""A network for each episode of several containers, with a small subnet of its own.

Rule: the engine's own pools hold about 30 networks, so subnets are chosen here, from ranges that
nothing on this machine uses: not a network of the engine, not a route. Without network the bridge
gets no address and no way out: the services see each other, and nothing else.
"""

import ipaddress
import random
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Network
from pathlib import Path

from headrace.aio import in_thread
from headrace.errors import SandboxError
from headrace.sandbox.docker_engine import EngineClient, status_of

RANGES = ("10.213.0.0/16", "198.18.0.0/15", "172.31.0.0/16")
"""Where subnets come from, in this order."""
TRIES = 20
NETWORK_S = 120.0
_ROUTES = Path("/proc/net/route")
_OVERLAPS = (400, 403, 409, 500)
"""What engines of different age answer when a pool overlaps with another."""


def subnets(
    used: Iterable[IPv4Network], *, hosts: int, start: float, ranges: tuple[str, ...] = RANGES
) -> Iterator[IPv4Network]:
    """Free subnets for so many containers. Pure; `start` in [0, 1) is where in a range to begin."""
    taken = [network for network in used if network.prefixlen]
    # Its first and last address and the gateway's are not for containers.
    prefix = 32 - max(4, (hosts + 3 - 1).bit_length())
    for text in ranges:
        range_ = IPv4Network(text)
        near = [network for network in taken if network.overlaps(range_)]
        count = 1 << (prefix - range_.prefixlen)
        size = 1 << (32 - prefix)
        for i in range(count):
            at = (int(start * count) + i) % count
            found = IPv4Network((int(range_.network_address) + at * size, prefix))
            if not any(found.overlaps(other) for other in near):
                yield found


def routes(text: str) -> list[IPv4Network]:
    """The destinations in `/proc/net/route`, the default route left out."""
    found = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7 and int(fields[7], 16):
            address, mask = (bytes.fromhex(fields[i])[::-1] for i in (1, 7))
            found.append(
                IPv4Network((int.from_bytes(address), int.from_bytes(mask).bit_count()), False)
            )
    return found


async def create(
    engine: EngineClient, name: str, *, hosts: int, network: bool, labels: Mapping[str, str]
) -> None:
    """Make the network `name`. Raises `SandboxError`; nothing is left of a failed try."""
    used = [*await _pools(engine), *routes(await in_thread(_routes))]
    free = subnets(used, hosts=hosts, start=random.random())
    last: SandboxError | None = None
    for _, subnet in zip(range(TRIES), free, strict=False):
        try:
            await _make(engine, name, subnet, network=network, labels=labels)
            return
        except SandboxError as e:
            # Another driver may have taken the same one since they were listed.
            if status_of(e) not in _OVERLAPS or "overlap" not in str(e).lower():
                raise
            last = e
    raise last or SandboxError(
        f"create network {name}: no free subnet in {', '.join(RANGES)}: `headrace sweep` removes "
        "what dead runs left"
    )


def _routes() -> str:
    return _ROUTES.read_text() if _ROUTES.exists() else ""


async def _make(
    engine: EngineClient,
    name: str,
    subnet: IPv4Network,
    *,
    network: bool,
    labels: Mapping[str, str],
) -> None:
    options = {} if network else {"com.docker.network.bridge.inhibit_ipv4": "true"}
    body = {
        "Name": name,
        "Driver": "bridge",
        "Internal": not network,
        "CheckDuplicate": True,
        "IPAM": {"Config": [{"Subnet": str(subnet)}]},
        "Options": options,
        "Labels": dict(labels),
    }
    async with engine.call(f"create network {name}", timeout_s=NETWORK_S) as docker:
        await docker.networks.create(body)


async def _pools(engine: EngineClient) -> list[IPv4Network]:
    async with engine.call("list networks", timeout_s=NETWORK_S) as docker:
        found = await docker.networks.list()
    pools = []
    for network in found:
        for pool in (network.get("IPAM") or {}).get("Config") or ():
            subnet = ipaddress.ip_network(pool.get("Subnet") or "::/128", strict=False)
            if isinstance(subnet, IPv4Network):
                pools.append(subnet)
    return pools
