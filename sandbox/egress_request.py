"""The first lines that a client sends to a proxy, read. Pure.

Rule: `CONNECT host:port` and requests with an absolute `http://` address are understood, all else
is answered with a status. A plain request goes on as the server expects it, for this one exchange:
headers that are between client and proxy are taken out, and the connection ends with the answer.
Its `Host` is the one of the address, whatever the client says: many names may live at one server.
"""

from urllib.parse import urlsplit

from headrace.types import Record

MAX_HEAD_BYTES = 16 << 10
_HOP = (b"proxy-", b"connection:", b"keep-alive:", b"te:", b"upgrade:", b"host:", b" ", b"\t")
_REASONS = {
    400: "Bad Request",
    403: "Forbidden",
    502: "Bad Gateway",
    504: "Gateway Timeout",
}


class Refused(Exception):
    """The client gets this status and sentence."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Asked(Record, frozen=True, kw_only=True):
    """What a client asks for."""

    host: str
    port: int
    forward: bytes | None = None
    """What the server is sent first; None: a tunnel."""


def parse(head: bytes) -> Asked:
    """The request in `head`, which ends with an empty line. Raises `Refused`."""
    line, _, rest = head.partition(b"\r\n")
    words = line.decode("latin-1").split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise Refused(400, "expected an HTTP/1 request for a proxy")
    method, target, _ = words
    if method == "CONNECT":
        host, port = _host_port("//" + target, None)
        return Asked(host=host, port=port)
    if not target.lower().startswith("http://"):
        raise Refused(400, "expected CONNECT, or an address that begins with http://")
    host, port = _host_port(target, 80)
    url = urlsplit(target)
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    kept = [
        header
        for header in rest.replace(b"\r\n", b"\n").split(b"\n")
        if header and not header.lower().startswith(_HOP)
    ]
    named = url.netloc.rpartition("@")[2]
    first = f"{method} {path} HTTP/1.1\r\nHost: {named}".encode("latin-1", "replace")
    lines = [first, *kept, b"Connection: close"]
    return Asked(host=host, port=port, forward=b"\r\n".join([*lines, b"", b""]))


def answer(status: int, why: str) -> bytes:
    """A whole answer of the proxy's own."""
    body = f"headrace: {why}\n".encode()
    return (
        f"HTTP/1.1 {status} {_REASONS.get(status, 'Error')}\r\nContent-Type: text/plain\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    ).encode() + body


def _host_port(url: str, default: int | None) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or default
    except ValueError:
        raise Refused(400, "expected host:port") from None
    if not host or port is None:
        raise Refused(400, "expected host:port")
    return host, port
