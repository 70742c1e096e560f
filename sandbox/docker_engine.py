"""The Docker engine behind its socket: where it is, whether it answers, how its errors read.

Rule: every call to the engine goes through `EngineClient.call`, which gives it a deadline and turns
what fails into `SandboxError`, or `ProviderGone` when the engine itself does not answer. Only
Unix sockets are spoken to: a remote engine would keep its containers when this machine dies.
It starts no engine; `scripts/docker-engine.sh` does.
"""

import asyncio
import errno
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiodocker import Docker
from aiodocker.exceptions import DockerError

from headrace.errors import InfrastructureError, ProviderGone, SandboxError, UsageError

DEFAULT_SOCKET = "/var/run/docker.sock"
BRING_UP = "start Docker, or bring an engine up with `scripts/docker-engine.sh up`"
PING_S = 5.0

_NO_CONNECTION = 900  # aiodocker's status for a connection that could not be made


def socket_path(socket: str | None = None) -> str:
    """The path of the engine's socket: `socket`, else `DOCKER_HOST`, else the default.

    Raises `UsageError` for an address that is no Unix socket.
    """
    address = socket or os.environ.get("DOCKER_HOST") or DEFAULT_SOCKET
    if address.startswith("unix://"):
        return address.removeprefix("unix://")
    if "://" in address:
        raise UsageError(
            f"the address of the Docker engine must be a Unix socket (unix:///path), found "
            f"{address}: use an engine on this machine, or sandbox.provider = 'namespace'"
        )
    return address


async def available(socket: str | None = None, *, timeout_s: float = PING_S) -> str | None:
    """None if a Docker engine answers on the socket, else why not and what to do about it."""
    try:
        path = socket_path(socket)
    except UsageError as e:
        return str(e)
    return await _unreachable(path, timeout_s)


async def _unreachable(path: str, timeout_s: float = PING_S) -> str | None:
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                writer.write(b"GET /_ping HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n")
                answer = await reader.readline()
            finally:
                writer.close()
    except TimeoutError:
        return f"the Docker engine on {path} did not answer within {timeout_s:g} s: restart it"
    except OSError as e:
        return _why(path, e)
    if b" 200 " not in answer:
        found = answer.decode(errors="replace").strip() or "nothing"
        return f"expected a Docker engine on {path}, but it answered {found!r}: {BRING_UP}"
    return None


def _why(path: str, error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return f"no Docker engine: there is no socket {path}: {BRING_UP}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            f"no permission on the Docker engine's socket {path}: add this user to the group "
            f"`docker` (and log in again), or run as root"
        )
    if error.errno == errno.ECONNREFUSED:
        return f"no Docker engine: nothing listens on {path}: {BRING_UP}"
    return f"no Docker engine: {path}: {error.strerror or error}: {BRING_UP}"


class EngineClient:
    """An async context manager over one engine; owns the connections to it."""

    def __init__(self, socket: str) -> None:
        self.socket = socket
        self._connector: aiohttp.UnixConnector | None = None
        self._docker: Docker | None = None

    async def __aenter__(self) -> "EngineClient":
        reason = await _unreachable(self.socket)
        if reason is not None:
            raise ProviderGone(reason)
        # The default of 100 connections would make the 101st call wait for ever.
        self._connector = aiohttp.UnixConnector(self.socket, limit=0)
        self._docker = Docker(url="unix://localhost", connector=self._connector)
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._docker is not None:
            await self._docker.close()
        if self._connector is not None:
            await self._connector.close()
        self._docker = self._connector = None

    @property
    def docker(self) -> Docker:
        if self._docker is None:
            raise SandboxError("the Docker provider is not open: use it as `async with`")
        return self._docker

    @asynccontextmanager
    async def call(
        self,
        doing: str,
        *,
        timeout_s: float,
        error: type[InfrastructureError] = SandboxError,
        describe: Callable[[str], str] | None = None,
    ) -> AsyncIterator[Docker]:
        """The client for one call, with a deadline, and with its failures given our types.

        `describe` may reword the engine's message. An answer with a status is `error`; no answer
        is `ProviderGone`, unless the engine still answers a ping.
        """
        try:
            async with asyncio.timeout(timeout_s):
                yield self.docker
        except DockerError as e:
            if e.status == _NO_CONNECTION:
                raise await self.lost(doing, e.message, error) from e
            message = describe(e.message) if describe else e.message
            raise error(f"{doing}: {message}") from e
        except TimeoutError as e:
            cause = f"the engine was not done within {timeout_s:g} s"
            raise await self.lost(doing, cause, error) from e
        except (aiohttp.ClientError, OSError, EOFError) as e:
            raise await self.lost(doing, str(e) or type(e).__name__, error) from e

    async def lost(
        self, doing: str, cause: object, error: type[InfrastructureError] = SandboxError
    ) -> InfrastructureError:
        """The error for a call without an answer: `error`, or `ProviderGone` if the engine is."""
        reason = await _unreachable(self.socket)
        if reason is not None:
            return ProviderGone(f"{doing}: {reason}")
        return error(f"{doing}: {cause}")


async def post_lines(
    docker: Docker, path: str, *, params: Mapping[str, str], data: Any = None
) -> AsyncGenerator[dict[str, Any], None]:
    """The engine's answer to a POST, one JSON object per line as it comes. Use with `aclosing`.

    The client library's own streams leave the connection open when they are cancelled, and the
    engine goes on building. Raises `DockerError` for an error status or an error line.
    """
    headers = {"Content-Type": "application/x-tar"}
    url = f"http://docker/{path}"
    async with docker.session.post(url, params=params, data=data, headers=headers) as answer:
        if answer.status >= 400:
            raise DockerError(answer.status, _message(await answer.text()))
        async for line in answer.content:
            found = json.loads(line)
            if "error" in found:
                raise DockerError(answer.status, str(found["error"]))
            yield found


def _message(body: str) -> str:
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body.strip()


def status_of(error: BaseException) -> int | None:
    """The engine's HTTP status behind an error of ours, if there is one."""
    cause = error.__cause__
    return cause.status if isinstance(cause, DockerError) else None


def parsed_labels(container: Any) -> dict[str, str]:
    """The labels of an entry of the engine's container list."""
    labels = container["Labels"]
    return dict(labels) if labels else {}
