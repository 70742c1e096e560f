"""A model's chat template, rendered to text and taken apart into its fixed parts.

Rule: the template is asked once, with marker words as messages, and what it puts around them is
kept. So a later message is framed exactly as the template frames it, whatever the model sampled
in between, and no message is ever rendered again. Templates see a fixed date: a prompt that
changes overnight would make attempts differ. Tools, images and system messages are not rendered.
"""

import json
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from headrace.errors import ConfigError

Message = dict[str, str]

_TODAY = datetime(2026, 1, 1)
_USER, _ANSWER, _NEXT = "headraceopening", "headraceanswer", "headracenext"


class Frame(NamedTuple):
    """What the template writes around the messages of a conversation."""

    head: str
    """Before the first user message."""
    ask: str
    """After the first user message, up to where the model begins."""
    between: str
    """From the end of the model's text to the beginning of the next user message."""
    ask_again: str
    """After a later user message, up to where the model begins."""
    strips: bool
    """The template takes white space off the ends of a message."""


class ChatTemplate:
    """The template of one model folder."""

    def __init__(self, folder: Path) -> None:
        """Compile the folder's template; `ConfigError` when there is none or it is broken."""
        from jinja2 import TemplateError

        self._where = folder
        self._variables = _special_tokens(folder)
        source = _template_source(folder, self._variables.pop("chat_template", None))
        try:
            self._template = _environment().from_string(source)
        except TemplateError as e:
            raise ConfigError(f"policy.model: {folder}: broken chat template: {e}") from None

    def text(self, messages: list[Message], *, ask: bool) -> str:
        """The messages as text; with `ask`, up to where the model begins."""
        from jinja2 import TemplateError

        try:
            rendered: str = self._template.render(
                messages=messages, add_generation_prompt=ask, **self._variables
            )
        except (TemplateError, TypeError) as e:
            raise ConfigError(
                f"policy.model: {self._where}: the chat template refuses a conversation of "
                f"user and assistant messages: {e}"
            ) from None
        return rendered

    @cached_property
    def frame(self) -> Frame:
        """The fixed parts, found with marker words."""
        opening = self.text([_user(_USER)], ask=True)
        head, ask = self._around(opening, _USER)
        answer = {"role": "assistant", "content": _ANSWER}
        both = self.text([_user(_USER), answer, _user(_NEXT)], ask=True)
        _, after = self._around(both, _ANSWER)
        between, ask_again = self._around(after, _NEXT)
        padded = self.text([_user(f"  {_USER}  ")], ask=True)
        return Frame(head, ask, between, ask_again, strips=f"  {_USER}  " not in padded)

    def _around(self, text: str, word: str) -> tuple[str, str]:
        if text.count(word) != 1:
            raise ConfigError(
                f"policy.model: {self._where}: expected a chat template that writes each message "
                f"once as it is, found one that writes it {text.count(word)} times"
            )
        before, _, after = text.partition(word)
        return before, after


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _special_tokens(folder: Path) -> dict[str, Any]:
    """`bos_token` and its like, as text, and the template where the file carries it."""
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        try:
            content = json.loads((folder / name).read_bytes())
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as e:
            raise ConfigError(f"policy.model: {folder / name}: expected JSON, found: {e}") from None
        for key, value in content.items():
            token = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(token, str):
                found[key] = token
            elif key == "chat_template":
                found[key] = value
    return found


def _template_source(folder: Path, carried: Any) -> str:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    if isinstance(carried, list):  # several by name
        named = {t.get("name"): t.get("template") for t in carried if isinstance(t, dict)}
        carried = named.get("default")
    if isinstance(carried, str):
        return carried
    raise ConfigError(
        f"policy.model: {folder}: expected a chat template (chat_template.jinja, or "
        "`chat_template` in tokenizer_config.json), found none. Name an instruction-tuned model"
    )


def _environment() -> Any:
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what the model wrote; here it only holds its body."""

        tags = {"generation"}

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = _TODAY.strftime
    return environment
