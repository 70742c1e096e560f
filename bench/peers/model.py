"""One fake model server for every system: OpenAI's chat API, and vLLM's completions of token ids.

It answers at once, from `bench.peers.script`; the model's name chooses the list. It keeps no state
but counters, so any number of episodes may ask at once. It prints its port and ends with its
standard input.

    python -m bench.peers.model --tokenizer FOLDER
"""

import argparse
import asyncio
import json
import subprocess
import sys
import urllib.request
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from aiohttp import web
from bench.peers.script import ANSWERS, answer, given_in
from bench.serving import serve

from headrace.policies.rendering import Chat

CONTEXT = 32768
METRICS = "vllm:num_requests_running 0\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 0.1\n"


class _Message(msgspec.Struct):
    role: str


class _Chat(msgspec.Struct):
    model: str
    messages: list[_Message]
    stream: bool = False


class _Completions(msgspec.Struct):
    model: str
    prompt: list[int]


class _Sampled(msgspec.Struct):
    """An answer as the model would have sampled it."""

    text: str
    ids: list[int]
    packed: bytes


class Server:
    """Answers by name of the model and by what was said already."""

    def __init__(self, chat: Chat) -> None:
        end = [] if chat.end_of_turn_id is None else [chat.end_of_turn_id]
        self._sampled = {
            name: [_sampled(chat.vocabulary.encode_trusted(text) + end, text) for text in answers]
            for name, answers in ANSWERS.items()
        }
        self._packed = {name: [one.packed for one in them] for name, them in self._sampled.items()}
        self._read_chat = msgspec.json.Decoder(_Chat).decode
        self._read_completions = msgspec.json.Decoder(_Completions).decode
        self._calls: Counter[str] = Counter()

    def app(self) -> web.Application:
        app = web.Application(client_max_size=16 << 20)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/calls", self._told)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._complete)
        return app

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(text=METRICS)

    async def _told(self, request: web.Request) -> web.Response:
        return _json(dict(self._calls))

    async def _models(self, request: web.Request) -> web.Response:
        return _json({"data": [{"id": name, "max_model_len": CONTEXT} for name in ANSWERS]})

    async def _chat(self, request: web.Request) -> web.Response:
        body = self._read_chat(await request.read())
        if body.model not in ANSWERS or body.stream:
            return _json({"error": {"message": f"one of {list(ANSWERS)}, unstreamed"}}, status=400)
        self._calls[body.model] += 1
        said = sum(message.role == "assistant" for message in body.messages)
        return _json(_completion(body.model, said))

    async def _complete(self, request: web.Request) -> web.Response:
        body = self._read_completions(await request.read())
        if body.model not in ANSWERS:
            return _json({"error": {"message": f"one of {list(ANSWERS)}"}}, status=400)
        self._calls[body.model] += 1
        them = self._sampled[body.model]
        said = given_in(array("I", body.prompt).tobytes(), self._packed[body.model])
        one = them[min(said, len(them) - 1)]
        choice = {
            "index": 0,
            "text": one.text,
            "finish_reason": "stop",
            "token_ids": one.ids,
            "prompt_token_ids": body.prompt,
            "logprobs": {"token_logprobs": [-0.5] * len(one.ids)},
        }
        return _json({"id": "scripted", "model": body.model, "choices": [choice]})


def _sampled(ids: list[int], text: str) -> _Sampled:
    return _Sampled(text=text, ids=ids, packed=array("I", ids).tobytes())


def _completion(model: str, said: int) -> dict[str, Any]:
    text = answer(model, said)
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if model == "bash-tool":
        call = {"name": "bash", "arguments": json.dumps({"command": text})}
        message["content"] = None
        message["tool_calls"] = [{"id": f"call-{said}", "type": "function", "function": call}]
    finish = "tool_calls" if model == "bash-tool" else "stop"
    return {
        "id": "scripted",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(value),
        status=status,
        headers={"Content-Type": "application/json"},
    )


@contextmanager
def serving(tokenizer: Path) -> Iterator[str]:
    """The address of a server in a process of its own, for the length of the block."""
    line: Sequence[str] = (sys.executable, "-m", "bench.peers.model", "--tokenizer", str(tokenizer))
    server = subprocess.Popen(
        line,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        start_new_session=True,  # Ctrl-C is for the bench, which then ends the server
    )
    assert server.stdin is not None and server.stdout is not None
    try:
        told = server.stdout.readline()
        if not told:
            raise SystemExit("bench.peers: the model server did not start: see its error above")
        yield f"http://127.0.0.1:{json.loads(told)['port']}"
    finally:
        server.stdin.close()
        server.wait(30)
        server.stdout.close()


def calls(address: str) -> int:
    """How many calls the server has answered."""
    with urllib.request.urlopen(f"{address}/calls", timeout=60) as answer:
        counts: dict[str, int] = json.load(answer)
    return sum(counts.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of the tokenizer")
    server = Server(Chat(parser.parse_args().tokenizer))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        loop.run(serve(server.app()))


if __name__ == "__main__":
    main()
