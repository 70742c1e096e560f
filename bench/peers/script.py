"""What the scripted model says, in the words each agent understands, and what is asked of it.

Rule: every system runs the same six commands, one per model call, and then says it is done. Only
the wrapping differs: a JSON object for Terminus-2, a fenced block, a call of mini-swe-agent's tool.
A list of answers has a name; the fake server gives it as the model of that name.
"""

import json
from collections.abc import Mapping, Sequence

LINE = "headrace and its peers"
ANSWER_FILE = "/app/answer.txt"
INSTRUCTION = f"Write exactly this line to {ANSWER_FILE}:\n\n{LINE}\n"
CHECK = f'[ "$(cat {ANSWER_FILE})" = "{LINE}" ]'
"""What every verifier runs."""
COMMANDS = (
    "pwd && ls -la",
    "cat /etc/os-release",
    "mkdir -p /app && ls -la /app",
    f"echo '{LINE}' > {ANSWER_FILE}",
    f"cat {ANSWER_FILE}",
    f"wc -l {ANSWER_FILE}",
)
PAUSE_S = 0.1
"""What Terminus-2's prompt asks for after a command that returns at once."""
SUBMIT = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"
"""How mini-swe-agent is told that the work is done: a command of its own."""


def _terminus(command: str | None) -> str:
    keys = [] if command is None else [{"keystrokes": f"{command}\n", "duration": PAUSE_S}]
    plan = "Nothing is left to do." if command is None else f"Run {command.split()[0]}."
    return json.dumps(
        {
            "analysis": "The terminal shows what was expected.",
            "plan": plan,
            "commands": keys,
            "task_complete": command is None,
        }
    )


def _block(command: str) -> str:
    return f"I run {command.split()[0]}.\n\n```bash\n{command}\n```"


ANSWERS: Mapping[str, Sequence[str]] = {
    # Asked whether it is sure, Terminus-2's model says it once more.
    "terminus-json": (*map(_terminus, COMMANDS), _terminus(None), _terminus(None)),
    "shell-block": (*map(_block, COMMANDS), "DONE"),
    "bash-tool": (*COMMANDS, SUBMIT),
}
"""By the name of the model."""


def answer(model: str, given: int) -> str:
    """The next answer after `given` of them; the last one again when none is left."""
    answers = ANSWERS[model]
    return answers[min(given, len(answers) - 1)]


def given_in(prompt: bytes, answers: Sequence[bytes], width: int = 4) -> int:
    """How many of the answers a prompt already holds, one after another; all are token ids.

    The ids are packed, `width` bytes each. What a server sampled goes back to it as it came, so an
    answer is found as it was given, and nothing else of a prompt says so.
    """
    at = 0
    for number, wanted in enumerate(answers):
        found = _aligned(prompt, wanted, at, width)
        if found < 0:
            return number
        at = found + len(wanted)
    return len(answers)


def _aligned(prompt: bytes, wanted: bytes, start: int, width: int) -> int:
    at = prompt.find(wanted, start)
    while at >= 0 and at % width:
        at = prompt.find(wanted, at + 1)
    return at
