"""How a fake model server of the benches is served: one process, one port, until its input ends."""

import asyncio
import json
import sys

from aiohttp import web


async def serve(app: web.Application) -> None:
    """Prints the port it listens on; returns when standard input ends."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=8192)
        await site.start()
        print(json.dumps({"port": runner.addresses[0][1]}), flush=True)
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), ended.set)
        await ended.wait()
    finally:
        await runner.cleanup()
