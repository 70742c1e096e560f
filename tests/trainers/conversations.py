"""Episodes whose token streams are real: what is shown is framed as the model's template frames it,
and the answers are tokenised as a server would have sampled them.

Rule: text that comes back as the same tokens, so that what a trainer makes of the words can be
compared with the stream, token by token.
"""

from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
from tests.preferences import runs
from tests.preferences.runs import Act

from headrace.policies.rendering_template import ChatTemplate, Frame
from headrace.policies.rendering_tokens import Piece, Vocabulary
from headrace.types import Episode, Segment, Span

END = "<|im_end|>"


class Words(NamedTuple):
    """What is said and shown at one task. The loser says `wrong`, sees `refused` and begins again.

    At the second task what is wrong is no action, and what is shown spells a control token, as any
    program's output may.
    """

    look: str
    shown: str
    right: str
    built: str
    wrong: str
    refused: str
    done: str

    def winner(self) -> list[tuple[str, str | None]]:
        return [(self.look, self.shown), (self.right, self.built), (self.done, None)]

    def loser(self) -> list[tuple[str, str | None]]:
        first, *rest = self.winner()
        return [first, (self.wrong, self.refused), first, *rest]


BUILD = Words(
    look='{"analysis": "Nothing is known yet.", "commands": ["ls -a"]}',
    shown="$ ls -a\n.  ..  Makefile  main.c\n[exit code 0]",
    right='{"analysis": "There is a Makefile; it builds main.", "commands": ["make && ./main"]}',
    built="$ make && ./main\ncc main.c -o main\n“héllo” {{ world }} <b>\n[exit code 0]",
    wrong='{"analysis": "I will tidy up before anything else.", "commands": ["rm -r ."]}',
    refused="$ rm -r .\nrm: refusing to remove '.'\n[exit code 1]",
    done='{"analysis": "It is built and runs.", "commands": [], "task_complete": true}',
)
COUNT = Words(
    look='{"analysis": "Which files hold the log?", "commands": ["find /var/log -name \'*.gz\'"]}',
    shown="$ find /var/log -name '*.gz'\n/var/log/app.1.gz\n/var/log/app.2.gz\n[exit code 0]",
    right='{"analysis": "Both are packed.", "commands": ["zcat /var/log/app.*.gz | wc -l > n"]}',
    built="$ zcat /var/log/app.*.gz | wc -l > n\n[exit code 0]",
    wrong="I look at one by hand, and forget what an answer looks like.",
    refused=f"No JSON was found. The log ends with:\nprompt: hello{END}",
    done='{"analysis": "The number of lines is in n.", "commands": [], "task_complete": true}',
)
TASKS = {"org/build": BUILD, "org/count": COUNT}
PASSED, HALF = {"t1": True, "t2": True}, {"t1": True, "t2": False}


def episodes(model: Path) -> list[Episode]:
    """Two tasks of two attempts: each has a winner and a loser, who part at the second turn."""
    vocabulary, frame = Vocabulary(model), ChatTemplate(model).frame
    made = []
    for task, words in TASKS.items():
        won = [Act(text, shown) for text, shown in words.winner()]
        made.append(_episode(vocabulary, frame, task, 0, 1.0, PASSED, won))
        lost = [
            Act(text, shown, problems=() if text.startswith("{") else ("no JSON",))
            for text, shown in words.loser()
        ]
        made.append(_episode(vocabulary, frame, task, 1, 0.0, HALF, lost))
    return made


def winners(made: list[Episode]) -> list[Episode]:
    """Those that `export` takes for imitation."""
    return [episode for episode in made if episode.verdict.passed]


def said(of: list[Episode], close: str) -> list[list[str]]:
    """What the policy said, turn by turn, each with how a trainer closes a turn."""
    return [[turn.text + close for turn in episode.turns] for episode in of]


def streams(of: list[Episode]) -> list[list[int]]:
    """The stored tokens."""
    return [list(episode.segments[0].tokens()) for episode in of]


def _episode(
    vocabulary: Vocabulary,
    frame: Frame,
    task: str,
    sample: int,
    reward: float,
    tests: Mapping[str, bool],
    turns: Sequence[Act],
) -> Episode:
    plain = runs.episode(task, sample, reward, tests=tests, turns=turns, tokens=False)
    ids: list[int] = []
    spans: list[Span] = []
    for number, act in enumerate(turns):
        shown = turns[number - 1].shown or "" if number else plain.opening
        # The policy sampled the end of its turn, so what lies between begins after it.
        before = frame.between.removeprefix(END) if number else frame.head
        after = frame.ask_again if number else frame.ask
        ids += vocabulary.encode([Piece(before, True), Piece(shown, False), Piece(after, True)])
        sampled = vocabulary.encode_trusted(act.text + END)
        spans.append(Span(turn=number, start=len(ids), end=len(ids) + len(sampled)))
        ids += sampled
    prompt = vocabulary.decode(ids[: spans[0].start], control=True)
    return msgspec.structs.replace(plain, segments=(_segment(ids, spans),), prompt=prompt)


def _segment(ids: list[int], spans: list[Span]) -> Segment:
    logprobs = array("f", [0.0] * len(ids))
    for span in spans:
        for at in range(span.start, span.end):
            logprobs[at] = -(1 + ids[at] % 61) / 64
    tokens = array("I", ids).tobytes()
    return Segment(token_ids=tokens, logprobs=logprobs.tobytes(), spans=tuple(spans))
