"""The parts of a terminal that do no I/O: keys, the screen, and what the kernel says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.sandbox.terminal import STILL_RAW_S, STILL_S, read_state
from headrace.sandbox.terminal_keys import encode, is_key
from headrace.sandbox.terminal_screen import PENDING_BYTES, SCROLLBACK, Emulator

# --- keys -----------------------------------------------------------------------------------

KEYS = [
    ("C-c", b"\x03"), ("^C", b"\x03"), ("c-C", b"\x03"), ("C-d", b"\x04"), ("C-z", b"\x1a"),
    ("C-[", b"\x1b"), ("C-\\", b"\x1c"), ("C-Space", b"\0"), ("C-@", b"\0"), ("C-?", b"\x7f"),
    ("Enter", b"\r"), ("enter", b"\r"), ("Escape", b"\x1b"), ("Tab", b"\t"), ("BTab", b"\x1b[Z"),
    ("Space", b" "), ("BSpace", b"\x7f"), ("Up", b"\x1b[A"), ("Left", b"\x1b[D"),
    ("Home", b"\x1b[H"), ("End", b"\x1b[F"), ("PageUp", b"\x1b[5~"), ("NPage", b"\x1b[6~"),
    ("DC", b"\x1b[3~"), ("IC", b"\x1b[2~"), ("F1", b"\x1bOP"), ("F5", b"\x1b[15~"),
    ("F12", b"\x1b[24~"), ("M-x", b"\x1bx"), ("M-Enter", b"\x1b\r"), ("C-M-a", b"\x1b\x01"),
    ("C-Up", b"\x1b[1;5A"), ("M-S-F5", b"\x1b[15;4~"), ("S-F1", b"\x1b[1;2P"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "sent"), KEYS, ids=[name for name, _ in KEYS])
def test_a_key_name_is_its_key(name: str, sent: bytes) -> None:
    assert is_key(name)
    assert encode(name) == sent


TEXTS = ["ls\n", "C-c\n", " C-c", "C-compiler", "Upper", "Enter Enter", "x", "", "-", "M-", "C-é",
         "F13", "grüße 🚀\n", "a\tb\r", "S", "^", "--"]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_anything_else_is_typed_as_it_stands(text: str) -> None:
    assert encode(text) == text.encode()


def test_cursor_keys_follow_the_program() -> None:
    assert encode("Up", application=True) == b"\x1bOA"
    assert encode("C-Up", application=True) == b"\x1b[1;5A"


# --- the screen -----------------------------------------------------------------------------


def emulator(*parts: bytes) -> Emulator:
    out = Emulator(20, 5, lambda answer: None)
    show(out, *parts)
    return out


def show(on: Emulator, *parts: bytes) -> None:
    for part in parts:
        on.feed(part)
        for _ in on.digest():
            pass


def told(on: Emulator, *parts: bytes) -> str:
    show(on, *parts)
    return on.take()[0]


def test_what_is_printed_is_told_once() -> None:
    terminal = emulator()
    assert told(terminal, b"$ ls\r\n", b"a\r\n$ ") == "$ ls\na\n$ "
    assert told(terminal) == ""
    assert told(terminal, b"x") == "x"
    assert terminal.display() == "$ ls\na\n$ x"


def test_lines_that_scrolled_off_are_told_too() -> None:
    terminal = emulator(b"first\r\n")
    terminal.take()
    lines = b"".join(b"%d\r\n" % i for i in range(20))
    assert told(terminal, lines) == "".join(f"{i}\n" for i in range(20))
    assert terminal.display() == "16\n17\n18\n19"


def test_older_lines_than_the_scrollback_are_gone() -> None:
    terminal = emulator()
    text = told(terminal, b"".join(b"%d\r\n" % i for i in range(SCROLLBACK + 100)))
    assert text.count("\n") <= SCROLLBACK + 5
    assert text.endswith(f"{SCROLLBACK + 99}\n")


def test_bytes_may_be_cut_anywhere() -> None:
    data = "a\x1b[1;31mé漢🚀\x1b[0m\r\n\x1b]0;t\x07\x1bP1$r\x1b\\\x1b[?25lz\x1b(0q\x1b(B".encode()
    whole = told(emulator(), data)
    assert whole == "aé漢🚀\nz─"
    assert told(emulator(), *(data[i : i + 1] for i in range(len(data)))) == whole


@pytest.mark.parametrize(
    "sequence",
    [b"\x1b[>4;2m", b"\x1b[>c", b"\x1b[38:2::1:2:3m", b"\x1b[1 q", b"\x1b[!p", b"\x1b_G1\x1b\\",
     b"\x1bkname\x1b\\", b"\x1b F", b"\x1b[?2004h", b"\x1b[1;2;3;4;5A", b"\x1b[?1$p", b"\x1b[=1u"],
)  # fmt: skip
def test_a_sequence_that_shows_nothing_shows_nothing(sequence: bytes) -> None:
    assert told(emulator(), b"a" + sequence + b"b") == "ab"


def test_characters_without_a_width_take_nothing_with_them() -> None:
    assert told(emulator(), "❤\ufe0f e\u0301 👩\u200d🚀 end".encode()) == (
        "❤\ufe0f e\u0301 👩\u200d🚀 end"
    )


def test_half_of_a_wide_character_is_a_blank() -> None:
    assert told(emulator(), "漢字\rx".encode()) == "x 字"


def test_a_wide_character_that_does_not_fit_goes_to_the_next_line() -> None:
    assert told(emulator(), b"x" * 19 + "漢".encode()) == "x" * 19 + "\n漢"


def test_a_full_screen_program_leaves_the_lines_as_they_were() -> None:
    terminal = emulator(b"$ vim\r\n")
    terminal.take()
    assert told(terminal, b"\x1b[?1049h\x1b[H~\x1b[?1h") == ""
    assert (terminal.display(), terminal.screen.application_cursor) == ("~", True)
    assert told(terminal, b"\x1b[?1l\x1b[?1049l$ ") == ""
    assert terminal.display() == "$ vim\n$"
    assert told(terminal, b"next") == "next"


@pytest.mark.parametrize("clear", [b"\x1b[H\x1b[2J", b"\x1b[H\x1b[J", b"\x1bc", b"\x1b[H\x1b[2Jx"])
def test_after_a_clear_only_the_screen_tells(clear: bytes) -> None:
    terminal = emulator(b"$ one\r\n$ clear\r\n")
    terminal.take()
    assert told(terminal, clear + b"$ ") == ""
    assert told(terminal, b"next") == "next"


def test_lines_written_over_above_the_last_prompt_are_not_told() -> None:
    terminal = emulator(b"a\r\nb\r\n")
    terminal.take()
    assert told(terminal, b"\x1b[2Ax") == ""


def test_a_cursor_that_went_up_from_an_empty_line_has_told_nothing() -> None:
    terminal = emulator(b"a\r\n\r\n")
    terminal.take()
    assert told(terminal, b"\x1b[A") == ""
    assert told(terminal, b"b") == "b"


def test_a_program_that_asks_is_answered() -> None:
    answers: list[str] = []
    terminal = Emulator(20, 5, answers.append)
    show(terminal, b"ab\x1b[6n\x1b[c")
    assert answers == ["\x1b[1;3R", "\x1b[?6c"]


def test_a_flood_keeps_its_ends_and_its_switches() -> None:
    terminal = emulator(b"$ ")
    terminal.take()
    terminal.feed(b"first\r\n")
    for i in range(40):
        terminal.feed(b"%06d\r\n" % i * 4000 + (b"\x1b[?1h" if i == 20 else b""))
    show(terminal, b"last")
    text, cut = terminal.take()
    assert text.endswith("000039\nlast")
    assert 0 < 40 * 32_000 - cut <= PENDING_BYTES + 4096
    assert terminal.screen.application_cursor
    assert "pending=0" in repr(terminal)


def test_digesting_that_stops_early_loses_nothing() -> None:
    terminal = emulator()
    terminal.feed(b"".join(b"%d\r\n" % i for i in range(1000)))
    next(terminal.digest())
    assert told(terminal, b"end").endswith("998\n999\nend")


@pytest.mark.parametrize(
    "begun", [b"\x1b", b"\x1b[", b"\x1b[2;", b"\x1b[?1 ", b"\x1b(", b"\x1b]0;title", b"\x1b_a"]
)
def test_a_sequence_that_another_follows_is_given_up(begun: bytes) -> None:
    terminal = emulator()
    show(terminal, begun, b"\x1bP", b"\x18\x1b\\", b"\x1bc", b"fine")
    assert terminal.display() == "fine"


@given(st.lists(st.binary(max_size=80) | st.sampled_from(
    [b"\x1b[", b"\x1b]", b"\x1bP", b"\x1b[?1049h", b"\x1b[?1049l", b"\x1b[9999;9999H", b"\x1b[5S",
     b"\x1b[2;3r", b"\x1b[9999L", b"\x1b[9999@", b"\x1b[4h", b"\x1b[?7l", b"\x1b7", b"\x1b8",
     b"\x1bM", b"\x1b[A", b"\x1b[?3h", b"\xe6\xbc", b"\x9b", b"\x0e", b"\n" * 7, "漢".encode() * 15]
)))  # fmt: skip
def test_no_bytes_break_the_screen(parts: list[bytes]) -> None:
    terminal = emulator()
    for part in parts:
        told(terminal, part).encode()
    lines = terminal.display().encode().split(b"\n")
    assert len(lines) <= 5
    show(terminal, b"\x18\x1b\\\x1bc", b"fine")
    assert terminal.display() == "fine"


# --- what the kernel says -------------------------------------------------------------------

STATES = [
    ("a prompt", "mode raw\nprocess S 7 7 do_select", STILL_S),
    ("a shell without line editing", "mode cooked\nprocess S 7 7 n_tty_read", STILL_S),
    ("cat", "mode cooked\nprocess S 9 7 n_tty_read", STILL_S),
    ("an editor", "mode raw\nprocess S 9 7 do_select", STILL_RAW_S),
    ("a sleeper", "mode cooked\nprocess S 9 7 hrtimer_nanosleep", None),
    ("a download", "mode cooked\nprocess S 9 7 do_poll", None),
    ("a builtin loop", "mode cooked\nprocess R 7 7 0", None),
    ("a program that sleeps before it draws", "mode raw\nprocess S 9 7 hrtimer_nanosleep", None),
    ("a pager that waits for a slow program",
     "mode raw\nprocess S 9 7 anon_pipe_read\nprocess S 9 7 hrtimer_nanosleep", None),
    ("a prompt of a mode nobody tells", "mode \nprocess S 7 7 do_select", STILL_RAW_S),
    ("a program of a mode nobody tells", "mode \nprocess S 9 7 do_select", None),
    ("an editor of another user", "mode raw\nprocess S 9 7 0", STILL_RAW_S),
    ("an editor at work", "mode raw\nprocess R 9 7 0", None),
    ("a pipeline at work", "mode cooked\nprocess S 9 7 pipe_read\nprocess R 9 7 0", None),
    ("a pager behind a pipe", "mode raw\nprocess S 9 7 pipe_write\nprocess S 9 7 n_tty_read",
     STILL_RAW_S),
    ("another user's program", "mode cooked\nprocess S 9 7 0", None),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "still_s"), [s[1:] for s in STATES], ids=[s[0] for s in STATES])
def test_the_foreground_is_idle_when_it_waits_for_keys(answer: str, still_s: float | None) -> None:
    state = read_state(answer + "\n")
    assert state is not None
    assert state.still_s == still_s


@pytest.mark.parametrize("answer", ["", "mode \n", "mode cooked\n", "process S\n", "junk"])
def test_no_foreground_is_no_state(answer: str) -> None:
    assert read_state(answer) is None
