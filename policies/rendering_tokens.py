"""A model's tokenizer, with control tokens out of reach of the text it is given.

Rule: a piece of text is trusted (the chat template wrote it) or not (a task, a command or a user
did). Only trusted text makes control tokens; `<|im_end|>` in a command's output stays seven
characters of text. Where nothing is forged, ids are exactly those of the whole text in one go.
It reads `tokenizer.json`, so neither transformers nor torch is loaded.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from headrace.errors import ConfigError, PolicyError


class Piece(NamedTuple):
    """A stretch of a prompt."""

    text: str
    trusted: bool


class Vocabulary:
    """Text to ids and back. Safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        """Load `folder/tokenizer.json`; `ConfigError` when it or the `tokenizers` package lacks."""
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise ConfigError(
                "policy: a model policy needs the package `tokenizers`, found none installed. "
                "Run `pip install tokenizers` or install headrace with its extra `cpu` or `vllm`"
            ) from None
        content = _tokenizer_json(folder)
        self.control = _control_tokens(content)
        """The control tokens and their ids."""
        self._control_ids = frozenset(self.control.values())
        longest_first = sorted(self.control, key=len, reverse=True)
        self._control_pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        try:
            self._whole: Any = Tokenizer.from_str(json.dumps(content))
            self._plain: Any = Tokenizer.from_str(json.dumps(_without(content, self.control)))
        except Exception as e:  # the library raises plain `Exception` for a broken file
            raise ConfigError(
                f"policy.model: {folder / 'tokenizer.json'}: expected a tokenizer, found: {e}"
            ) from None

    def encode(self, pieces: Sequence[Piece]) -> tuple[int, ...]:
        """The ids of the pieces one after another; control tokens from trusted pieces only."""
        whole = "".join(piece.text for piece in pieces)
        ids: list[int] = self._ids(self._whole, whole)
        allowed = [
            self.control[token]
            for piece in pieces
            if piece.trusted
            for token in self._control_pattern.findall(piece.text)
        ]
        if [i for i in ids if i in self._control_ids] == allowed:
            return tuple(ids)
        return self._encode_guarded(pieces)

    def encode_trusted(self, text: str) -> list[int]:
        """The ids of text that may make control tokens."""
        return list(self._ids(self._whole, text))

    def forges_control(self, text: str) -> bool:
        """Whether `text` spells a control token."""
        return self._control_pattern.search(text) is not None

    def decode(self, ids: Sequence[int], *, control: bool = False) -> str:
        """The text of ids; control tokens left out unless `control`."""
        return str(self._whole.decode(list(ids), skip_special_tokens=not control))

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Start and end of each token of trusted `text`, in characters."""
        return list(self._whole.encode(text, add_special_tokens=False).offsets)

    def id_of(self, token: str) -> int | None:
        """The id of a token of the vocabulary, control or not."""
        found = self._whole.token_to_id(token)
        return None if found is None else int(found)

    @staticmethod
    def _ids(tokenizer: Any, text: str) -> list[int]:
        # the batch call without offsets is the one that frees the interpreter while it works
        encoded = tokenizer.encode_batch_fast([text], add_special_tokens=False)
        return list(encoded[0].ids)

    def _encode_guarded(self, pieces: Sequence[Piece]) -> tuple[int, ...]:
        ids: list[int] = []
        text = ""
        for piece in pieces:
            if not piece.trusted:
                text += piece.text
                continue
            at = 0
            for match in self._control_pattern.finditer(piece.text):
                ids += self._text_ids(text + piece.text[at : match.start()])
                ids.append(self.control[match.group()])
                text, at = "", match.end()
            text += piece.text[at:]
        ids += self._text_ids(text)
        return tuple(ids)

    def _text_ids(self, text: str) -> list[int]:
        """Ids of text that must not make a control token."""
        if not text:
            return []
        ids = self._ids(self._plain, text)
        if self._control_ids.isdisjoint(ids):
            return ids
        # a vocabulary that holds the control token as a word: break every occurrence apart
        ids, at = [], 0
        for match in self._control_pattern.finditer(text):
            ids += self._ids(self._plain, text[at : match.start() + 1])
            at = match.start() + 1
        ids += self._ids(self._plain, text[at:])
        if not self._control_ids.isdisjoint(ids):
            raise PolicyError(
                "expected a tokenizer that can write its control tokens as plain text, "
                "found one that cannot; the task's text holds such a token"
            )
        return ids


def _tokenizer_json(folder: Path) -> dict[str, Any]:
    file = folder / "tokenizer.json"
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise ConfigError(
            f"policy.model: expected {file}, found none. Models with another form of tokenizer "
            "can be saved once more with transformers' fast tokenizer"
        ) from None
    except (OSError, ValueError) as e:
        raise ConfigError(f"policy.model: {file}: expected JSON, found: {e}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"policy.model: {file}: expected an object")
    return {**content, "truncation": None, "padding": None}


def _control_tokens(content: dict[str, Any]) -> dict[str, int]:
    """Added tokens, marked special or not: `<tool_call>` steers a model as `<|im_end|>` does.

    Runs of white space, which some vocabularies add, are text.
    """
    return {
        token["content"]: int(token["id"])
        for token in content.get("added_tokens") or ()
        if token["content"].strip()
    }


def _without(content: dict[str, Any], control: dict[str, int]) -> dict[str, Any]:
    kept = [t for t in content.get("added_tokens") or () if t["content"] not in control]
    return {**content, "added_tokens": kept, "post_processor": None}
