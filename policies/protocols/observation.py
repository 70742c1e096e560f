"""What a model is told about the commands it asked for.

Rule: the same results give the same text; it is cut to `LIMIT_BYTES`, from the middle, and says
so. It does not strip colours or carriage returns: the model sees what the command wrote.
"""

from collections.abc import Sequence

from headrace.policies.protocols.base import Parsed
from headrace.types import Command, CommandResult

LIMIT_BYTES = 10_000
ECHO_CHARS = 200


def observation(previous: Parsed, results: Sequence[CommandResult], reminder: str) -> str:
    """The user message after `previous`; `reminder` says how an answer must look."""
    if previous.problems:
        said = _bullets("Your last answer could not be used:", previous.problems)
        return f"{said}\nNothing was run. {reminder}"
    return _with_warnings(previous, cut_middle(_body(previous.commands, results), LIMIT_BYTES))


def screen_observation(previous: Parsed, results: Sequence[CommandResult], reminder: str) -> str:
    """The same for keystrokes: what they printed together or, where that does not tell, the screen.

    One text for all of them, as somebody before the terminal would have seen it.
    """
    if previous.problems:
        return observation(previous, results, reminder)
    return _with_warnings(previous, _terminal(previous.commands, results))


def _terminal(commands: Sequence[Command], results: Sequence[CommandResult]) -> str:
    if not results:
        return "[nothing was typed]"
    untold = any(
        command.text and not result.stdout
        for command, result in zip(commands, results, strict=False)
    )
    printed = _decode(b"".join(result.stdout for result in results)).strip()
    if untold or not printed:
        shown = cut_middle(_decode(results[-1].screen or b""), LIMIT_BYTES)
        parts = [f"Current Terminal Screen:\n{shown}"]
    else:
        parts = [f"New Terminal Output:\n{cut_middle(printed, LIMIT_BYTES)}"]
    if cut := sum(result.stdout_cut for result in results):
        parts.append(f"[{cut} bytes were left out of the middle]")
    if any(result.shell_lost for result in results):
        parts.append("[the shell ended; what is typed next goes to a fresh one]")
    return "\n".join(parts)


def _with_warnings(previous: Parsed, body: str) -> str:
    if previous.warnings:
        return f"{_bullets('About your last answer:', previous.warnings)}\n\n{body}"
    return body


def cut_middle(text: str, limit_bytes: int) -> str:
    """`text` if its UTF-8 form fits, else its first and last halves with a note between."""
    data = text.encode("utf-8", "replace")
    if len(data) <= limit_bytes:
        return text
    half = limit_bytes // 2
    head = data[:half].decode("utf-8", "ignore")
    tail = data[-half:].decode("utf-8", "ignore")
    return f"{head}\n[... {len(data) - 2 * half} bytes left out ...]\n{tail}"


def _body(commands: Sequence[Command], results: Sequence[CommandResult]) -> str:
    if not results:
        return "[no command was run]"
    if len(commands) == 1:
        return _result(results[0])
    shown = zip(commands, results, strict=False)  # fewer results when the episode was ending
    return "\n".join(f"$ {_echo(command.text)}\n{_result(result)}" for command, result in shown)


def _echo(text: str) -> str:
    line, more, _ = text.partition("\n")
    if len(line) > ECHO_CHARS:
        return line[:ECHO_CHARS] + " ..."
    return line + " ..." if more else line


def _result(result: CommandResult) -> str:
    parts = []
    if result.stdout:
        parts.append(_decode(result.stdout))
    if result.stderr:
        parts.append(f"[stderr]\n{_decode(result.stderr)}")
    if cut := result.stdout_cut + result.stderr_cut:
        parts.append(f"[{cut} bytes were left out of the middle]")
    if result.timed_out:
        parts.append(f"[stopped: not finished after {result.duration_s:.0f} s]")
    elif result.shell_lost:
        parts.append("[the shell ended; the next command gets a fresh one]")
    elif result.exit_code:
        parts.append(f"[exit code {result.exit_code}]")
    return "\n".join(parts) if parts else "[no output]"


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "replace").rstrip("\n")


def _bullets(title: str, lines: Sequence[str]) -> str:
    return "\n".join([title, *(f"- {line}" for line in lines)])
