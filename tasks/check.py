"""What may trouble a task that can be read: the findings of `headrace tasks check`.

Rule: hints from the text of the files, never proof; nothing is run. A task without findings can
still be broken: run it with `oracle` and with `noop`.
"""

import re
from pathlib import Path

from headrace.types import Record, Task

MAX_SCRIPT_BYTES = 1 << 20
_FETCH = re.compile(
    r"^[^#\n]*?\b(?:(?P<installer>apt-get|apt|apk|pip3?|uv|npm|cargo|conda)\s[^\n]*?"
    r"\b(?:install|update|add|sync)\b"
    r"|(?P<runner>uvx|npx)\s"
    r"|(?P<client>curl|wget)\s[^\n]*?https?://(?!127\.|localhost)"
    r"|(?P<git>git)\s[^\n]*?\b(?:clone|pull|fetch)\b[^\n]*?://)",
    re.MULTILINE,
)
_SHEBANG = re.compile(r"#!\s*/")
_RUNS_AS = re.compile(r"^\s*USER\s+\S", re.MULTILINE | re.IGNORECASE)


class Finding(Record, frozen=True, kw_only=True):
    """One thing to look at."""

    code: str
    """Snake case, stable."""
    message: str


def check(task: Task) -> list[Finding]:
    """The findings about one task, in a fixed order."""
    findings = []
    if task.solution is None:
        findings.append(("no_solution", "no solution/solve.sh: the oracle cannot run this task"))
    else:
        findings += _script(Path(task.solution.path) / "solve.sh", "solution/solve.sh")
    for tests in task.verifier.tests:
        findings += _script(Path(tests) / task.verifier.script, "tests/test.sh")
        if not any("reward" in _text(path) for path in _test_files(Path(tests))):
            findings.append(
                ("no_reward", "no file in tests/ mentions the reward file it must write")
            )
    findings += _environment(task)
    if task.inert:
        findings.append(("inert_fields", f"read but not acted on yet: {', '.join(task.inert)}"))
    if task.agent.timeout_s is None:
        findings.append(
            ("no_agent_timeout", "agent.timeout_sec is not set: only the run limits it")
        )
    return [Finding(code=code, message=message) for code, message in findings]


def _script(path: Path, name: str) -> list[tuple[str, str]]:
    text, findings = _text(path), []
    if not _SHEBANG.match(text):
        findings.append(("no_shebang", f"{name} does not begin with #!; bash runs it"))
    if "\r\n" in text:
        findings.append(("crlf", f"{name} has Windows line ends; a shell stumbles over them"))
    if fetch := _FETCH.search(text):
        program = fetch["installer"] or fetch["runner"] or fetch["client"] or fetch["git"]
        line = text.count("\n", 0, fetch.end()) + 1
        findings.append(("uses_network", f"{name}:{line} seems to fetch with {program!r}"))
    return findings


def _environment(task: Task) -> list[tuple[str, str]]:
    environment, findings = task.environment, []
    if environment.image is not None and environment.dockerfile is not None:
        findings.append(("image_and_dockerfile", "both docker_image and a Dockerfile are given"))
    if environment.dockerfile is not None:
        text = _text(Path(environment.dockerfile))
        if re.search(r"^\s*(COPY|ADD)\s.*\b(tests|solution)\b", text, re.MULTILINE | re.IGNORECASE):
            findings.append(("leak", "the Dockerfile copies tests or solution into the image"))
        if _RUNS_AS.search(text):
            findings.append(("image_user", "the Dockerfile sets USER: check what tests may write"))
    if environment.network.mode == "allowlist":
        findings.append(
            ("allowlist", "asks for a list of allowed hosts, which cannot be given yet")
        )
    return findings


def _test_files(tests: Path) -> list[Path]:
    return [path for path in sorted(tests.rglob("*")) if path.is_file()][:200]


def _text(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(MAX_SCRIPT_BYTES).decode("utf-8", "replace")
