"""The screen behind a terminal: from the bytes of a program to text.

Rule: sans-I/O. `feed` only keeps bytes, and of a flood no more than `PENDING_BYTES`: the middle
goes, the switches in it (alternate screen, cursor keys) are kept. `digest` interprets what is kept,
a slice at a time, so that the caller can give way to its loop. Colours are dropped. Lines that
scroll off are kept as text, `SCROLLBACK` of them.

What it does not do: draw, resize, or support a mouse. `pyte` holds the cursor and the cells; what
it lacks (an alternate screen, zero-width characters, sequences it would print) is here.
"""

import codecs
import re
from collections import deque
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import pyte
from pyte import charsets, modes
from pyte.screens import Char, Margins, StaticDefaultDict
from wcwidth import wcwidth

SCROLLBACK = 2000
"""Lines, as tmux keeps by default."""
PENDING_BYTES = 192 << 10
"""Kept of what was not interpreted yet: a third from the start, the rest from the end."""
_HEAD_BYTES = PENDING_BYTES // 3
SLICE_BYTES = 2048
_APPLICATION_CURSOR = 1 << 5
_ALTERNATE = frozenset((47, 1047, 1049))
_IGNORED_MODES = frozenset((3, 5))  # 132 columns, reverse video
_LONGEST_STRING = 4096
_SWITCH = re.compile(rb"\x1b\[\?(?:1|25|47|1047|1049|2004)[hl]|\x1bc")
_SWITCHES_KEPT = 16
_ABORT = "\x18\x1b\\"  # ends an unfinished sequence, whichever it is

_SKIPPED = re.compile(
    r"\x1b(?:"
    r"(?:\[[0-?]*[ -/]*|[ ()*+\-./#%])?(?=\x1b)"  # another one begins: this one is given up
    r"|[PX^_k\]][^\x1b\x07]*(?=\x1b[^\\])"
    r"|\[[0-9;:]*m"  # colours
    r"|\[[<=>][0-?]*[ -/]*[@-~]"  # private forms that pyte takes for the plain ones
    r"|\[[0-?]*[ -/]+[@-~]"
    r"|[PX^_\]][^\x1b\x07]*(?:\x1b\\|\x07)"  # strings of a device or an application, titles
    r"|k[^\x1b]*\x1b\\"
    r"|[ *+\-./]."
    r")",
    re.DOTALL,
)
_UNFINISHED = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*|[PX^_k\]][^\x1b\x07]*\x1b?|[ ()*+\-./#%])?\Z", re.DOTALL
)


@lru_cache(maxsize=4096)
def _cell(text: str) -> Char:
    return Char(text)


_BLANK = _cell(" ")
_STUB = _cell("")  # the right half of a wide character
_Line = StaticDefaultDict[int, Char]


class Screen(pyte.Screen):
    """Cells, cursor and scrollback. Lines have absolute numbers, counted from the first ever."""

    def __init__(self, columns: int, rows: int, reply: Callable[[str], None]) -> None:
        self.history: deque[str] = deque(maxlen=SCROLLBACK)
        """Text of the lines that scrolled off, the latest last."""
        self.scrolled = 0
        """How many ever did: the absolute number of the top line."""
        self.highest_touched = 0
        """Smallest absolute number of a line that was written or erased; the caller resets it."""
        self._main: tuple[Any, Any] | None = None
        self._reply = reply
        super().__init__(columns, rows)

    @property
    def alternate(self) -> bool:
        """Whether a full-screen program has the alternate screen."""
        return self._main is not None

    @property
    def application_cursor(self) -> bool:
        return _APPLICATION_CURSOR in self.mode

    def text_of(self, y: int) -> str:
        """Line `y` of the screen, without trailing blanks."""
        return _text(self.buffer[y]) if y in self.buffer else ""

    def columns_of(self, y: int, x: int) -> int:
        """How many characters of line `y` are left of column `x`."""
        line = self.buffer[y]
        return sum(len(line[i].data) for i in range(x))

    # --- what pyte calls ---

    def draw(self, data: str) -> None:
        if self.charset or self.g0_charset is not charsets.LAT1_MAP:
            data = data.translate(self.g1_charset if self.charset else self.g0_charset)
        self._touch(self.cursor.y)
        plain = data.isascii() and data.isprintable()
        if plain and modes.DECAWM in self.mode and modes.IRM not in self.mode:
            self._draw_plain(data)
        else:
            for char in data:
                self._draw_one(char)

    def index(self) -> None:
        top, bottom = self.margins or Margins(0, self.lines - 1)
        if self.cursor.y != bottom:
            self.cursor_down()
            return
        buffer = self.buffer
        if top == 0 and self._main is None:
            self.history.append(self.text_of(0))
            self.scrolled += 1
        if top == 0 and bottom == self.lines - 1:
            lines = [(y - 1, line) for y, line in buffer.items() if y > 0]
            buffer.clear()
            buffer.update(lines)
            return
        for y in range(top, bottom):
            if y + 1 in buffer:
                buffer[y] = buffer.pop(y + 1)
            else:
                buffer.pop(y, None)
        buffer.pop(bottom, None)

    def reverse_index(self) -> None:
        self._touch(0)
        super().reverse_index()

    def insert_lines(self, count: int | None = None) -> None:
        self._touch(self.cursor.y)
        super().insert_lines(count)

    def delete_lines(self, count: int | None = None) -> None:
        self._touch(self.cursor.y)
        super().delete_lines(count)

    def erase_in_display(self, how: int = 0, *args: Any, **options: Any) -> None:
        self._touch(self.cursor.y if how == 0 else 0)
        if how == 3:
            self.history.clear()
        super().erase_in_display(how, *args, **options)

    def reset(self) -> None:
        self.highest_touched = 0
        self._main = None
        self.savepoints.clear()
        super().reset()

    def save_cursor(self) -> None:
        self.savepoints.clear()  # one, as terminals have it; else they grow without end
        super().save_cursor()

    def select_graphic_rendition(self, *attrs: int, **options: Any) -> None:
        """Colours are not kept."""

    def set_mode(self, *codes: int, **options: Any) -> None:
        if options.get("private"):
            codes = tuple(code for code in codes if code not in _IGNORED_MODES)
            if _ALTERNATE.intersection(codes) and self._main is None:
                self._main = (self.buffer.copy(), _position(self.cursor))
                self.buffer.clear()
        super().set_mode(*codes, **options)

    def reset_mode(self, *codes: int, **options: Any) -> None:
        if options.get("private"):
            codes = tuple(code for code in codes if code not in _IGNORED_MODES)
            if _ALTERNATE.intersection(codes) and self._main is not None:
                buffer, (self.cursor.x, self.cursor.y) = self._main
                self.buffer.clear()
                self.buffer.update(buffer)
                self._main = self.margins = None
        super().reset_mode(*codes, **options)

    def set_title(self, param: str) -> None:
        """Titles are not kept."""

    set_icon_name = set_title

    def write_process_input(self, data: str) -> None:
        self._reply(data)

    # --- inside ---

    def _touch(self, y: int) -> None:
        if self._main is None and self.scrolled + y < self.highest_touched:
            self.highest_touched = self.scrolled + y

    def _draw_plain(self, data: str) -> None:
        cursor, columns = self.cursor, self.columns
        while data:
            if cursor.x >= columns:
                cursor.x = 0
                self.index()
            piece = data[: columns - cursor.x]
            end = cursor.x + len(piece)
            line = self.buffer[cursor.y]
            _split_wide(line, cursor.x, end)
            line.update(zip(range(cursor.x, end), map(_cell, piece), strict=True))
            cursor.x = end
            data = data[len(piece) :]

    def _draw_one(self, char: str) -> None:
        width, cursor = wcwidth(char), self.cursor
        if width < 0:
            return
        if width == 0:
            self._join(char)
            return
        if cursor.x + width > self.columns:
            if modes.DECAWM in self.mode:
                cursor.x = 0
                self.index()
            else:
                cursor.x = self.columns - width
        if modes.IRM in self.mode:
            self.insert_characters(width)
        line = self.buffer[cursor.y]
        _split_wide(line, cursor.x, cursor.x + width)
        line[cursor.x] = _cell(char)
        if width == 2:
            line[cursor.x + 1] = _STUB
        cursor.x += width

    def _join(self, char: str) -> None:
        """A character without a width belongs to the one before it."""
        line, x = self.buffer[self.cursor.y], self.cursor.x - 1
        if x > 0 and line[x].data == "":
            x -= 1
        if x >= 0 and len(line[x].data) < 16:
            line[x] = _cell(line[x].data + char)


def _position(cursor: Any) -> tuple[int, int]:
    return cursor.x, cursor.y


def _split_wide(line: _Line, start: int, end: int) -> None:
    """Blank the halves of wide characters that are about to be cut."""
    if line[start].data == "":
        line[start - 1] = _BLANK
    if line[end].data == "":
        line[end] = _BLANK


def _text(line: _Line) -> str:
    return "".join([line[x].data for x in range(max(line, default=-1) + 1)]).rstrip()


class _Stream(pyte.Stream):
    """pyte's parser, with a short way for text and line breaks, which are most of what is printed.

    A sequence it cannot take costs that sequence only.
    """

    def feed(self, data: str) -> None:
        screen = self.listener
        assert screen is not None
        text, send = self._text_pattern.match, self._send_to_parser
        plain, at, end = self._taking_plain_text, 0, len(data)
        while at < end:
            if not plain:
                plain = send(data[at])
                at += 1
            elif found := text(data, at):
                at = found.end()
                screen.draw(found.group())
            elif data[at] == "\r":
                screen.cursor.x = 0
                at += 1
            elif data[at] == "\n":
                screen.linefeed()
                at += 1
            else:
                plain = False
        self._taking_plain_text = plain

    def _send_to_parser(self, data: str) -> bool | None:
        try:
            return super()._send_to_parser(data)
        except Exception:  # such as more parameters than a method of pyte takes
            return True


class Emulator:
    """Bytes in, text out."""

    def __init__(self, columns: int, rows: int, reply: Callable[[str], None]) -> None:
        """`reply` gets what the terminal answers to a program that asks it."""
        self.screen = Screen(columns, rows, reply)
        self._stream = _Stream(self.screen)
        self._stream.use_utf8 = False  # else line drawing is ignored; the text is decoded here
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # an unfinished sequence
        self._head = bytearray()
        self._tail = bytearray()
        self._work: deque[bytes | None] = deque()
        """What `digest` has taken up: slices, and None where bytes were dropped."""
        self._switches: list[bytes] = []
        self._dropped = 0
        self._cut = 0
        self._mark = (0, 0)
        self._mark_alternate = False

    def __repr__(self) -> str:
        pending = len(self._head) + len(self._tail)
        return f"<Emulator pending={pending} scrolled={self.screen.scrolled}>"

    def feed(self, data: bytes) -> None:
        """Keep what a program printed; cheap."""
        room = _HEAD_BYTES - len(self._head)
        if room > 0 and not self._tail:
            self._head += data[:room]
            data = data[room:]
        self._tail += data
        if len(self._tail) > 2 * _HEAD_BYTES:
            self._drop(len(self._tail) - _HEAD_BYTES)

    def digest(self) -> Iterator[None]:
        """Interpret what is kept now; yields after each slice. Stopping early loses nothing."""
        yield from self._work_off()
        if not self.screen.alternate:
            self._skip_what_scrolls_off()
        head, tail = bytes(self._head), bytes(self._tail)
        self._head.clear()
        self._tail.clear()
        self._work += (head[i : i + SLICE_BYTES] for i in range(0, len(head), SLICE_BYTES))
        if self._dropped:
            self._cut += self._dropped
            self._dropped = 0
            self._work.append(None)
        self._work += (tail[i : i + SLICE_BYTES] for i in range(0, len(tail), SLICE_BYTES))
        yield from self._work_off()

    def display(self) -> str:
        """The visible screen, without the blank lines at its end."""
        lines = [self.screen.text_of(y) for y in range(self.screen.lines)]
        return "\n".join(lines).rstrip("\n")

    def take(self) -> tuple[str, int]:
        """What was printed since the last `take`, and how many bytes of it were dropped.

        Empty when the lines alone cannot tell: a full-screen program, or what was printed before
        has been written over.
        """
        text, cut = self._printed(), self._cut
        self._cut = 0
        screen = self.screen
        y, x = screen.cursor.y, screen.cursor.x
        self._mark = (screen.scrolled + y, screen.columns_of(y, x))
        self._mark_alternate = screen.alternate
        screen.highest_touched = screen.scrolled + y
        return text, cut

    # --- inside ---

    def _printed(self) -> str:
        screen = self.screen
        line, offset = self._mark
        if screen.alternate or self._mark_alternate or screen.highest_touched < line:
            return ""
        gone = screen.scrolled - line
        lines = list(screen.history)[-gone:] if gone > 0 else []
        y, x = screen.cursor.y, screen.cursor.x
        top = max(0, -gone)
        shown = [screen.text_of(row) for row in range(top, screen.lines)]
        while shown and not shown[-1] and top + len(shown) - 1 > y:
            shown.pop()
        if shown and top + len(shown) - 1 == y:  # blanks before the cursor: a prompt's last
            shown[-1] = shown[-1].ljust(screen.columns_of(y, x))
        lines += shown
        if gone <= len(screen.history) and lines:
            lines[0] = lines[0][offset:]
        return "\n".join(lines)

    def _interpret(self, text: str) -> None:
        text = _SKIPPED.sub("", self._held + text)
        self._held = ""
        start = max(0, len(text) - _LONGEST_STRING)
        if unfinished := _UNFINISHED.search(text, start):
            self._held = unfinished.group()
            text = text[: unfinished.start()]
        self._stream.feed(text)

    def _work_off(self) -> Iterator[None]:
        while self._work:
            piece = self._work.popleft()
            if piece is None:
                self._cross_gap()
            else:
                self._interpret(self._decoder.decode(piece))
                yield

    def _cross_gap(self) -> None:
        """Go on behind what was dropped, with its switches made."""
        self._decoder.reset()
        self._held = ""
        self._stream.feed(_ABORT)
        self._stream.feed(b"".join(self._switches).decode())
        self._switches.clear()

    def _skip_what_scrolls_off(self) -> None:
        """Of very many lines only the last can still be seen; the others are not worth the time."""
        last = self._tail or self._head
        keep = SCROLLBACK + 4 * self.screen.lines
        if last.count(b"\n") <= keep:
            return
        start = len(last.rsplit(b"\n", keep)[0]) + 1
        skipped = last[:start] if last is self._head else self._head + last[:start]
        self._leave_out(bytes(skipped))
        self._tail = last[start:]
        self._head = bytearray()

    def _leave_out(self, dropped: bytes) -> None:
        self._dropped += len(dropped)
        self._switches += _SWITCH.findall(dropped)
        del self._switches[:-_SWITCHES_KEPT]

    def _drop(self, count: int) -> None:
        """Leave out the first `count` bytes of the tail, and what follows of their last line."""
        newline = self._tail.find(b"\n", count, count + 4096)
        count = count if newline < 0 else newline + 1
        self._leave_out(bytes(self._tail[:count]))
        del self._tail[:count]
