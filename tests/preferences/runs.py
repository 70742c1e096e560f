"""Run folders for the tests of `preferences`, made by the real `RunFolder` and `Store`.

Rule: an episode is whole and consistent: its turns, observations, opening and prompt say the same
as its token stream. The toy tokenisation is a fixed function of the text, so equal text gives
equal tokens, and two episodes that begin alike share an exact prefix.
"""

import asyncio
import hashlib
import re
import zlib
from array import array
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from headrace.configs import load
from headrace.engine.reader import list_shards
from headrace.engine.resume import episode_id
from headrace.engine.run_folder import RunFolder
from headrace.engine.store import Store
from headrace.types import (
    Command,
    CommandResult,
    Episode,
    Segment,
    Span,
    StepResult,
    StopReason,
    TestOutcome,
    Turn,
    Verdict,
    VerdictFault,
)

POLICY_VERSION = "a" * 64
USER, ASSISTANT, END = 1, 2, 3
"""Tokens that stand for a template: before what is shown, before what is said, and the end of the
turn, which the policy samples."""
_FIRST_WORD = 16
_PIECE = re.compile(r"\s*\w+|\s*[^\w\s]|\s+")


class Act(NamedTuple):
    """One turn, where `(text, shown)` does not say enough."""

    text: str
    shown: str | None = ""
    """After the turn; None: the episode ended there, nothing was shown."""
    commands: tuple[str, ...] | None = None
    """None: the text is the command."""
    exit_code: int | None = 0
    problems: tuple[str, ...] = ()
    done: bool = False
    step: str = ""
    reset: bool = False
    """The context was reset: this turn begins another token stream."""


def said(*texts: str) -> list[Act]:
    """A turn for each text, each shown an output of its own."""
    return [Act(text, f"$ {text}\nran {text}\n[exit code 0]") for text in texts]


def digest_of(task: str) -> str:
    """The digest that `episode` gives a task."""
    return hashlib.sha256(task.encode()).hexdigest()


def episode(
    task: str = "org/a",
    sample: int = 0,
    reward: float | None = 1.0,
    *,
    tests: Mapping[str, bool | str] | None = None,
    turns: Sequence[tuple[str, str | None] | Act] = (("ls", "$ ls\na.txt"), ("cat a.txt", None)),
    tokens: bool = True,
    stop: StopReason = StopReason.DONE,
    policy_version: str = POLICY_VERSION,
    fault: VerdictFault | None = None,
    step: str = "",
    opening: str = "",
    **fields: Any,
) -> Episode:
    """An attempt at `task`. `tests`: passed or not by name, or a status word.

    `fault` takes the reward away. `step`: all turns belong to the step of this name. `fields` are
    those of `Episode` and go over what is made here.
    """
    acts = [_act(turn, step) for turn in turns]
    opening = opening or f"Task: do {task}.\nTerminal:\n$ "
    verdict = Verdict(
        reward=None if fault else reward,
        fault=fault,
        reason=f"{fault.value}: as the test says" if fault else None,
        tests=tuple(
            TestOutcome(name=name, status=_status(passed)) for name, passed in (tests or {}).items()
        ),
    )
    plain: dict[str, Any] = {
        "id": episode_id(digest_of(task), policy_version, sample),
        "task": task,
        "task_digest": digest_of(task),
        "policy": "vllm",
        "policy_version": policy_version,
        "provider": "namespace",
        "instruction": f"do {task}.",
        "prompt": f"<user>{opening}<assistant>",
        "opening": opening,
        "turns": tuple(_turn(act) for act in acts),
        "observations": tuple(act.shown for act in acts if act.shown is not None),
        "segments": segments(opening, acts) if tokens else (),
        "stop_reason": stop,
        "verdict": verdict,
        "steps": tuple(
            StepResult(name=name, stop_reason=stop, verdict=verdict)
            for name in dict.fromkeys(act.step for act in acts)
            if name
        ),
    }
    return Episode(sample=sample, **(plain | fields))


def make_run(
    folder: Path,
    episodes: Sequence[Episode],
    *,
    policy_version: str | None = None,
    model: str | None = "smollm2-135m",
    attempts: int | None = None,
    settings: Sequence[str] = (),
) -> Path:
    """A run folder of these episodes in this order; its path.

    `policy_version`: of the manifest; None: of the first episode. `model` None: a run of a policy
    without one. `attempts` None: as many as the samples say. `settings`: as for `--set`.
    """
    version = policy_version or (episodes[0].policy_version if episodes else POLICY_VERSION)
    count = attempts or max((one.sample + 1 for one in episodes), default=1)
    policy = (
        ["policy.type=noop"] if model is None else ["policy.type=vllm", f"policy.model={model}"]
    )
    config = load.load(None, [*policy, f"attempts={count}", *settings])
    tasks = {one.task: one.task_digest for one in episodes}
    name = "noop" if model is None else "vllm"
    with RunFolder.open(
        folder, config, tasks=tasks, policy=name, policy_version=version, provider="namespace"
    ):
        asyncio.run(store(folder, episodes))
    return folder


async def store(folder: Path, episodes: Sequence[Episode]) -> None:
    """Append episodes to a run's shards; each call begins a shard of its own."""
    async with asyncio.timeout(50), Store(folder) as into:
        for one in episodes:
            await into.append(one)


def spoil(run: Path, shard: int = 0, at: float = 0.5) -> None:
    """Flip a bit of a shard, at a share of its length: what covers it is damaged."""
    path = list_shards(run / "shards")[shard]
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 1
    path.write_bytes(data)


def token_ids(text: str) -> list[int]:
    """The toy tokens of a text."""
    return [_FIRST_WORD + zlib.crc32(piece.encode()) % 50_000 for piece in _PIECE.findall(text)]


def segments(opening: str, acts: Sequence[Act]) -> tuple[Segment, ...]:
    """The token streams of these turns: one, and one more for each reset and each further step."""
    begins = [0] + [
        number
        for number, (before, act) in enumerate(pairwise(acts), start=1)
        if act.reset or act.step != before.step
    ]
    ends = [*begins[1:], len(acts)]
    return tuple(
        _segment(opening, acts, begin, end)
        for begin, end in zip(begins, ends, strict=True)
        if end > begin
    )


def _segment(opening: str, acts: Sequence[Act], begin: int, end: int) -> Segment:
    ids: list[int] = []
    logprobs: list[float] = []
    spans: list[Span] = []
    for number in range(begin, end):
        shown = acts[number - 1].shown or "" if number else opening
        prompt = [USER, *token_ids(shown), ASSISTANT]
        sampled = [*token_ids(acts[number].text), END]
        spans.append(
            Span(turn=number, start=len(ids) + len(prompt), end=len(ids) + len(prompt + sampled))
        )
        ids += prompt + sampled
        # Sixty-fourths are exact as float32.
        logprobs += [0.0] * len(prompt) + [-(1 + token % 61) / 64 for token in sampled]
    return Segment(
        token_ids=array("I", ids).tobytes(),
        logprobs=array("f", logprobs).tobytes(),
        spans=tuple(spans),
    )


def _act(turn: tuple[str, str | None] | Act, step: str) -> Act:
    act = turn if isinstance(turn, Act) else Act(*turn)
    return act._replace(step=step) if step else act


def _turn(act: Act) -> Turn:
    commands = (act.text,) if act.commands is None else act.commands
    result = CommandResult(
        exit_code=act.exit_code, stdout=(act.shown or "").encode(), duration_s=0.25
    )
    return Turn(
        text=act.text,
        commands=tuple(Command(text=text) for text in commands),
        results=(result,) * len(commands),
        done=act.done,
        problems=act.problems,
        step=act.step,
    )


def _status(passed: bool | str) -> str:
    if isinstance(passed, str):
        return passed
    return "passed" if passed else "failed"
