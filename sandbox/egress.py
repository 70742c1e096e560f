"""What a policy lets through. Pure.

Rule: a host name must be listed, as itself or under `*.suffix`, and lead to a public address; an
address that is not public (this machine, its network, its cloud's metadata) must be listed itself,
as an address or a network. So no name, wherever it points, opens a way into the host's network.
It resolves nothing and connects nothing.
"""

import ipaddress
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from headrace.types import NetworkPolicy

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_HOLDS_ANOTHER = (IPv6Network("64:ff9b::/96"), IPv6Network("2002::/16"), IPv6Network("2001::/32"))
"""IPv6 addresses that stand for an IPv4 address, which may be any."""


class Rule:
    """One policy, read."""

    def __init__(self, policy: NetworkPolicy) -> None:
        self._public = policy.mode == "public"
        listed = policy.allowed_hosts if policy.mode == "allowlist" else ()
        self._networks = [net for net in map(as_network, listed) if net is not None]
        names = [normal(host) for host in listed if as_network(host) is None]
        self._names = {name for name in names if not name.startswith("*.")}
        self._suffixes = tuple(name[1:] for name in names if name.startswith("*."))

    def names(self, host: str) -> bool:
        """Whether the name or address itself is let through, wherever it leads."""
        host = normal(host)
        if as_address(host) is not None:
            return self._public
        return self._public or host in self._names or host.endswith(self._suffixes)

    def worth_resolving(self, host: str) -> bool:
        """Whether an answer for the name could be let through."""
        return self.names(host) or bool(self._networks)

    def allowed(self, host: str, addresses: Iterable[str]) -> list[str]:
        """Those of the addresses of `host` that may be connected to."""
        named = self.names(host)
        return [text for text in addresses if self._allows(as_address(text), named)]

    def _allows(self, address: Address | None, named: bool) -> bool:
        if address is None:
            return False
        if any(address in network for network in self._networks):
            return True
        return named and is_public(address)


def is_public(address: Address) -> bool:
    """Whether it is an address of the internet, not of this machine or a network near it."""
    if isinstance(address, IPv6Address) and any(address in net for net in _HOLDS_ANOTHER):
        return False
    return address.is_global and not address.is_multicast


def normal(host: str) -> str:
    """Lower case, without the dot at the end and the brackets of an IPv6 address."""
    return host.strip().strip("[]").rstrip(".").lower()


def as_address(host: str) -> Address | None:
    """A literal address; one that wraps an IPv4 address is that address."""
    try:
        found = ipaddress.ip_address(normal(host))
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return mapped or found


def as_network(host: str) -> Network | None:
    """An address or a network of a list, None for a name."""
    try:
        return ipaddress.ip_network(normal(host), strict=False)
    except ValueError:
        return None
