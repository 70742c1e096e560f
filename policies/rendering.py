"""Chat to token ids: the first prompt rendered, every later one extended.

Rule: what the model sampled is never made into text and back. The next prompt is the previous
prompt, the sampled ids as they came, and the ids of what the template writes from there to where
the model begins again. `renderers` is asked first, for the models it knows by name; for every
other model, and where a message spells a control token, the model's own template is used.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headrace.policies.rendering_template import ChatTemplate, Message
from headrace.policies.rendering_tokens import Piece, Vocabulary


class Chat:
    """How one model is talked to. Immutable; every session of a policy shares it."""

    def __init__(self, folder: Path) -> None:
        """Load tokenizer and template. Blocks for a tenth of a second: call it in a thread."""
        self.vocabulary = Vocabulary(folder)
        self._template = ChatTemplate(folder)
        self._frame = self._template.frame
        self._renderer = _known_renderer(folder, self.vocabulary, self._template)
        between = self._frame.between
        first = next((t for t in self.vocabulary.control if between.startswith(t)), None)
        self._end_of_turn = first or ""
        self.end_of_turn_id = None if first is None else self.vocabulary.control[first]
        """The token that closes the model's turn; None if the template has none."""

    @property
    def source(self) -> str:
        """What renders: the name of a renderer, or `chat-template`."""
        return "chat-template" if self._renderer is None else type(self._renderer).__name__

    def opening(self, user: str) -> tuple[int, ...]:
        """The whole first prompt."""
        if self._renderer is not None and not self.vocabulary.forges_control(user):
            return tuple(self._renderer.render_ids([_user(user)], add_generation_prompt=True))
        frame = self._frame
        return self._encode(frame.head, user, frame.ask)

    def extension(
        self, prompt: Sequence[int], sampled: Sequence[int], user: str
    ) -> tuple[int, ...]:
        """The ids between the end of `sampled`, an answer to `prompt`, and the next sample.

        A sample that was cut before its end-of-turn token gets that token here, unsampled.
        """
        if self._renderer is not None and not self.vocabulary.forges_control(user):
            bridged = self._bridge(prompt, sampled, user)
            if bridged is not None:
                return bridged
        between = self._frame.between
        if self.end_of_turn_id is not None and sampled and sampled[-1] == self.end_of_turn_id:
            between = between[len(self._end_of_turn) :]
        return self._encode(between, user, self._frame.ask_again)

    def _encode(self, before: str, user: str, after: str) -> tuple[int, ...]:
        message = user.strip() if self._frame.strips else user
        return self.vocabulary.encode(
            [Piece(before, True), Piece(message, False), Piece(after, True)]
        )

    def _bridge(
        self, prompt: Sequence[int], sampled: Sequence[int], user: str
    ) -> tuple[int, ...] | None:
        """The renderer's own extension, or None where it would change what was sampled."""
        assert self._renderer is not None
        before, answer = list(prompt), list(sampled)
        rendered = self._renderer.bridge_to_next_turn(before, answer, [_user(user)])
        if rendered is None:
            return None
        kept = len(before) + len(answer)
        if rendered.token_ids[:kept] != before + answer:
            return None
        return tuple(rendered.token_ids[kept:])


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def published_name(folder: Path) -> str | None:
    """`org/model`, as far as the folder's path shows it: `.../org/model` or a hub cache's name."""
    for part in reversed(folder.parts):
        if part.startswith("models--") and part.count("--") >= 2:
            return part.removeprefix("models--").replace("--", "/", 1)
    return "/".join(folder.parts[-2:]) if len(folder.parts) >= 3 else None


def _known_renderer(folder: Path, vocabulary: Vocabulary, template: ChatTemplate) -> Any | None:
    """A renderer written for this very model, else None. Taken only if it agrees with the template.

    A fine-tune may sit in a folder of the original's name with a template of its own.
    """
    from renderers.base import MODEL_RENDERER_MAP, create_renderer
    from renderers.configs import AutoRendererConfig

    name = published_name(folder)
    if name is None or name not in MODEL_RENDERER_MAP:
        return None
    tokenizer = _Tokenizer(name, vocabulary)
    try:
        renderer = create_renderer(tokenizer, AutoRendererConfig(thinking_retention="all"))
        ours = renderer.render_ids([_user("hello")], add_generation_prompt=True)
    except Exception:  # whatever a renderer cannot do with this folder, the template can
        return None
    theirs = vocabulary.encode_trusted(template.text([_user("hello")], ask=True))
    return renderer if list(ours) == theirs else None


class _Tokenizer:
    """The surface that `renderers` asks of a tokenizer."""

    eos_token_id: int | None = None
    unk_token_id: int | None = None

    def __init__(self, name: str, vocabulary: Vocabulary) -> None:
        self.name_or_path = name
        self._vocabulary = vocabulary

    def encode(self, text: str, *_: Any, **__: Any) -> list[int]:
        return self._vocabulary.encode_trusted(text)

    def decode(self, token_ids: Any, skip_special_tokens: bool = False, *_: Any, **__: Any) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        return self._vocabulary.decode(ids, control=not skip_special_tokens)

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        if isinstance(tokens, str):
            return self._vocabulary.id_of(tokens)
        return [self._vocabulary.id_of(token) for token in tokens]

    def __call__(self, text: str, *_: Any, **__: Any) -> dict[str, Any]:
        return {
            "input_ids": self._vocabulary.encode_trusted(text),
            "offset_mapping": self._vocabulary.offsets(text),
        }
