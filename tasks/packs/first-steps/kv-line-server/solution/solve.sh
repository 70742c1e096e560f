#!/bin/bash
# One event loop: commands run to their end between two waits, so INCR needs no lock.
set -eu
cat > /app/server.py <<'PY'
import asyncio
import signal
import sys

store = {}


def answer(line):
    name, _, rest = line.partition(" ")
    if name == "SET":
        key, _, value = rest.partition(" ")
        if not key or not value or key != key.strip():
            return "ERROR"
        store[key] = value
        return "OK"
    if name == "COUNT" and line == "COUNT":
        return f"VALUE {len(store)}"
    if name not in ("GET", "DEL", "INCR") or not rest or rest.split() != [rest]:
        return "ERROR"
    if name == "GET":
        return f"VALUE {store[rest]}" if rest in store else "NONE"
    if name == "DEL":
        return "OK" if store.pop(rest, None) is not None else "NONE"
    try:
        number = int(store.get(rest, "0")) + 1
    except ValueError:
        return "ERROR"
    store[rest] = str(number)
    return f"VALUE {number}"


async def serve(reader, writer):
    try:
        while True:
            line = await reader.readline()
            if not line.endswith(b"\n"):
                break
            text = line[:-1].removesuffix(b"\r").decode("utf-8", "replace")
            if text == "QUIT":
                writer.write(b"BYE\n")
                await writer.drain()
                break
            writer.write(answer(text).encode() + b"\n")
            await writer.drain()
    except (ConnectionError, ValueError):
        pass
    finally:
        writer.close()


async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]), limit=1 << 20)
    await stop.wait()


asyncio.run(main())
PY
python3 -m py_compile /app/server.py
