"""Episodes as a model makes them, out of this machine's own text, for the benchmarks.

Commands show pieces of Python's standard library and of this repository; the words of the policy
are lines of their comments and docstrings; token ids are a fixed function of the text at about
four characters a token, and log-probabilities are float32 as a server sends them. Nothing is
repeated on purpose, and the same seed gives the same episode.
"""

import json
import random
import re
import struct
import sysconfig
import zlib
from array import array
from functools import cache
from pathlib import Path

from headrace.engine.resume import episode_id
from headrace.types import (
    Command,
    CommandResult,
    Episode,
    Segment,
    Span,
    StopReason,
    TestOutcome,
    Timing,
    Turn,
    Verdict,
)

VOCABULARY = 49_152
PIECE = re.compile(r"\s?[A-Za-z]{1,5}|\s?\d{1,2}|\s+|[^\sA-Za-z\d]{1,2}")


@cache
def sources() -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Files to show: name and lines."""
    here = Path(__file__).resolve().parent.parent
    library = Path(sysconfig.get_path("stdlib"))
    files = sorted(library.glob("*.py"))[:120] + sorted(here.glob("*/*.py"))
    texts = ((f.name, tuple(f.read_text(errors="replace").splitlines())) for f in files)
    return tuple((name, lines) for name, lines in texts if len(lines) > 80)


@cache
def prose() -> tuple[str, ...]:
    """Lines that read as sentences."""
    lines = {line.strip(" #") for _, text in sources() for line in text}
    return tuple(sorted(s for s in lines if 40 < len(s) < 90 and s[0].isupper() and " the " in s))


def tokens(text: str) -> list[int]:
    return [zlib.crc32(piece.encode()) % VOCABULARY for piece in PIECE.findall(text)]


def _result(chance: random.Random) -> tuple[str, bytes]:
    name, lines = chance.choice(sources())
    start = chance.randrange(len(lines) - 60)
    count = min(60, max(1, int(chance.expovariate(1 / 10))))
    shown = lines[start : start + count]
    if chance.random() < 0.4:
        command = f"grep -n {chance.choice(['def', 'import', 'self', 'return'])} {name} | head"
        shown = tuple(f"{start + i}:{line}" for i, line in enumerate(shown))
    else:
        command = f"sed -n '{start},{start + count}p' {name}"
    return command, "\n".join(shown).encode()


def _answer(chance: random.Random, command: str) -> str:
    analysis = " ".join(chance.choices(prose(), k=chance.randint(1, 3)))
    return json.dumps(
        {
            "analysis": analysis,
            "plan": chance.choice(prose()),
            "commands": [{"keystrokes": command + "\n", "duration": 0.1}],
            "task_complete": False,
        },
        indent=2,
    )


def _logprob(chance: random.Random) -> float:
    value = -chance.expovariate(8.0) if chance.random() < 0.7 else -chance.expovariate(0.7)
    return struct.unpack("<f", struct.pack("<f", value))[0]


def make_episode(number: int, turns: int = 30) -> Episode:
    """Episode `number`: 30 turns, 5,000 to 10,000 tokens."""
    chance = random.Random(number)
    task = number // 8
    instruction = " ".join(random.Random(task).choices(prose(), k=8))
    ids, logprobs, spans = tokens(instruction), [], []
    logprobs.extend([0.0] * len(ids))
    done, observations = [], []
    for turn in range(turns):
        command, output = _result(chance)
        text = _answer(chance, command)
        sampled = tokens(text)
        spans.append(Span(turn=turn, start=len(ids), end=len(ids) + len(sampled)))
        ids += sampled
        logprobs += [_logprob(chance) for _ in sampled]
        command_s = chance.expovariate(20)
        result = CommandResult(exit_code=0, stdout=output, duration_s=command_s)
        seen = f"$ {command}\n{output.decode()}\n[exit code 0]"
        observations.append(seen)
        shown = tokens(seen)
        ids += shown
        logprobs += [0.0] * len(shown)
        done.append(
            Turn(
                text=text,
                commands=(Command(text=command),),
                results=(result,),
                policy_s=chance.expovariate(0.5),
                command_s=command_s,
            )
        )
    segment = Segment(
        token_ids=array("I", ids).tobytes(),
        logprobs=array("f", logprobs).tobytes(),
        spans=tuple(spans),
    )
    digest = f"{task:064x}"
    return Episode(
        id=episode_id(digest, "bench", number % 8),
        task=f"bench/task-{task}",
        task_digest=digest,
        category="coding",
        sample=number % 8,
        policy="vllm",
        policy_version="bench",
        provider="namespace",
        instruction=instruction,
        prompt=instruction,
        turns=tuple(done),
        observations=tuple(observations),
        segments=(segment,),
        stop_reason=StopReason.MAX_TURNS,
        verdict=Verdict(
            reward=float(number % 3 == 0),
            tests=tuple(TestOutcome(name=f"test_{i}", status="passed") for i in range(6)),
            log_tail="6 passed in 0.10s",
            duration_s=chance.random(),
        ),
        timing=Timing(act_s=chance.expovariate(0.02), policy_s=chance.expovariate(0.02)),
        started_at=1_700_000_000 + chance.random() * 1e6,
    )
