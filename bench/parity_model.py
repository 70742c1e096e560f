"""A model that answers from a list: OpenAI's chat API on the loopback, for Harbor's Terminus-2.

Which task asks is told by its instruction in the first message, which answer is due by the number
of answers already in the conversation. It keeps no state, so any number of trials may ask at once.
"""

import json
import threading
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

DONE = '{"analysis": "", "plan": "", "commands": [], "task_complete": true}'
"""After the last answer of a list."""


class Answers:
    """The answers of every task, found by instruction."""

    def __init__(self, script: Path, instructions: Sequence[tuple[str, str]]) -> None:
        """`instructions`: names of tasks and their instructions, one for each step."""
        document = tomllib.loads(script.read_text())
        self._others: Sequence[str] = document.get("answers", [])
        own = document.get("tasks", {})
        self._of = {
            text.strip(): own.get(name, {}).get("answers", self._others)
            for name, text in instructions
        }
        if len(self._of) < len(instructions):
            raise ValueError("two tasks have the same instruction: they cannot be told apart")

    def next(self, messages: Sequence[Mapping[str, Any]]) -> str:
        said = sum(message["role"] == "assistant" for message in messages)
        asked = _text(messages[0]["content"])
        found = [answers for text, answers in self._of.items() if text in asked]
        answers = found[0] if len(found) == 1 else self._others
        return answers[said] if said < len(answers) else DONE


@contextmanager
def serving(answers: Answers) -> Iterator[str]:
    """The address of a server that gives `answers`, for the length of the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(answers))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="model-server", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(answers: Answers) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            body = json.loads(self.rfile.read(length))
            reply = json.dumps(_completion(answers.next(body["messages"]), body["model"])).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    return Handler


def _completion(text: str, model: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "id": "scripted",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", "") for part in content)
