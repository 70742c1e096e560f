"""How models' answers become commands, and results become messages."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ConfigError
from headrace.policies.protocols.base import Parsed
from headrace.policies.protocols.observation import LIMIT_BYTES, cut_middle
from headrace.policies.protocols.registry import PROTOCOLS, protocol
from headrace.types import Command, CommandResult

TERMINUS = protocol("terminus-json")
SHELL = protocol("shell-block")


def answer(*keystrokes: str, done: bool = False, **more: object) -> str:
    commands = [{"keystrokes": text, "duration": 1.0} for text in keystrokes]
    fields = {"analysis": "seen", "plan": "next", "commands": commands, "task_complete": done}
    return json.dumps(fields | more)


def texts(parsed: Parsed) -> list[str]:
    return [command.text for command in parsed.commands]


def typed(text: str, timeout_s: float = 1.0) -> Command:
    return Command(text=text, timeout_s=timeout_s, keys=True)


# --- terminus-json: what is accepted --------------------------------------------------------


def test_a_well_formed_answer_gives_its_commands_without_a_word() -> None:
    parsed = TERMINUS.parse(answer("cd /tmp\n", "ls -la\n"))
    assert parsed == Parsed(commands=(typed("cd /tmp\n"), typed("ls -la\n")))


PLAIN = answer("ls\n", "pwd\n")
MENDED = [
    ("text before", f"I will look.\n{PLAIN}", "text before"),
    ("text after", f"{PLAIN}\nDone.", "text after"),
    ("a markdown fence", f"```json\n{PLAIN}\n```", "text before"),
    ("a missing last }", PLAIN[:-1], "missing }"),
    ("a missing ]", PLAIN.replace("}]", "}"), "missing ]"),
    ("a missing } of a command", PLAIN.replace("1.0}, {", "1.0, {"), "missing }"),
    ("a trailing comma in the list", PLAIN.replace("}]", "},]"), "trailing comma"),
    ("a trailing comma in the object", PLAIN[:-1] + ",}", "trailing comma"),
    ("a missing comma", PLAIN.replace('"seen",', '"seen"'), "missing comma"),
    ("raw newlines in strings", PLAIN.replace("\\n", "\n"), "raw line break"),
    ("Python's False", PLAIN.replace("false", "False"), "no JSON word"),
    ("a stray bracket", PLAIN.replace("}]", "}]]"), "stray ]"),
    ("an outer object", '{"answer": ' + PLAIN + "}", "text before"),
]


@pytest.mark.parametrize(("text", "warning"), [m[1:] for m in MENDED], ids=[m[0] for m in MENDED])
def test_a_slip_with_one_meaning_is_mended_with_a_warning(text: str, warning: str) -> None:
    parsed = TERMINUS.parse(text)
    assert parsed.problems == ()
    assert texts(parsed) == ["ls\n", "pwd\n"]
    assert any(warning in said for said in parsed.warnings), parsed.warnings


def test_braces_in_reasoning_are_not_the_answer() -> None:
    thought = '<think>awk "{print $1}" or {"commands": [{"keystrokes": "rm -rf /\\n"}]}?</think>'
    parsed = TERMINUS.parse(thought + PLAIN)
    assert texts(parsed) == ["ls\n", "pwd\n"]
    assert parsed.warnings == ()


def test_reasoning_opened_by_the_chat_template_is_skipped_too() -> None:
    assert texts(TERMINUS.parse('maybe {"a": 1}\n</think>\n' + PLAIN)) == ["ls\n", "pwd\n"]


def test_reasoning_that_never_ends_is_no_answer() -> None:
    parsed = TERMINUS.parse("<think>perhaps " + PLAIN)
    assert parsed.commands == ()
    assert "inside <think>" in parsed.problems[0]


def test_an_answer_that_writes_a_closing_think_tag_is_still_read() -> None:
    parsed = TERMINUS.parse(answer("echo '</think>' > f\n"))
    assert texts(parsed) == ["echo '</think>' > f\n"]


def test_of_two_answers_the_first_is_used_with_a_warning() -> None:
    parsed = TERMINUS.parse(answer("first\n") + "\nThen:\n" + answer("second\n"))
    assert texts(parsed) == ["first\n"]
    assert any("only the first" in said for said in parsed.warnings)


def test_prose_with_braces_before_the_answer_is_passed_over() -> None:
    parsed = TERMINUS.parse('Use {"x" then {} or {"a": 1}: ' + PLAIN)
    assert texts(parsed) == ["ls\n", "pwd\n"]


def test_shell_escapes_that_json_does_not_know_reach_the_shell() -> None:
    text = r'{"commands": [{"duration": 1, "keystrokes": "grep \d+ \$f \'x\'\n"}]}'
    assert texts(TERMINUS.parse(text)) == [r"grep \d+ \$f 'x'" + "\n"]


def test_keystrokes_are_typed_as_they_stand() -> None:
    lines = "cat > f <<'E'\na\n\nE\n\n"
    assert TERMINUS.parse(answer(lines)).commands == (typed(lines),)


@pytest.mark.parametrize(
    ("given_s", "wait_s"), [(1, 1.0), (0.5, 0.5), (45.5, 45.5), (1e9, 60.0), (0, 0.1), (-5, 0.1)]
)
def test_a_duration_is_the_longest_wait(given_s: float, wait_s: float) -> None:
    parsed = TERMINUS.parse(answer(commands=[{"keystrokes": "make\n", "duration": given_s}]))
    assert parsed == Parsed(commands=(typed("make\n", wait_s),))


def test_a_duration_that_is_missing_or_no_number_is_a_second_with_a_warning() -> None:
    for odd in (None, "soon", True, [1], {"s": 1}):
        parsed = TERMINUS.parse(answer(commands=[{"keystrokes": "make\n", "duration": odd}]))
        assert parsed.commands == (typed("make\n"),)
        assert "duration" in parsed.warnings[0]


def test_empty_keystrokes_wait() -> None:
    parsed = TERMINUS.parse(answer(commands=[{"keystrokes": "", "duration": 5}]))
    assert parsed == Parsed(commands=(typed("", 5.0),))


@pytest.mark.parametrize("key", ["C-c", "C-d", "Enter", "Up", "M-x", "F1", "Escape", "C-M-a"])
def test_a_key_is_sent_without_a_word(key: str) -> None:
    parsed = TERMINUS.parse(answer(key, "ls\n"))
    assert parsed == Parsed(commands=(typed(key), typed("ls\n")))


def test_a_key_with_a_line_break_is_text_and_says_so() -> None:
    parsed = TERMINUS.parse(answer("C-c\n", "ls\n"))
    assert texts(parsed) == ["C-c\n", "ls\n"]
    assert "typed as text" in parsed.warnings[0]


def test_a_line_that_is_not_entered_before_the_next_is_a_warning() -> None:
    assert "same line" in TERMINUS.parse(answer("ls", "pwd\n")).warnings[0]
    assert TERMINUS.parse(answer("pwd\n", "ls")).warnings == ()


@pytest.mark.parametrize("text", ["q\n", "C-compiler\n", "a-b\n", "up\n"])
def test_a_command_that_looks_like_a_key_is_typed(text: str) -> None:
    assert TERMINUS.parse(answer(text)) == Parsed(commands=(typed(text),))


@pytest.mark.parametrize(
    ("value", "done"),
    [(True, True), ("true", True), ("YES", True), ("1", True), (1, True), ("no", False),
     (False, False), (None, False)],
)  # fmt: skip
def test_task_complete_is_read_as_terminus_reads_it(value: object, done: bool) -> None:
    assert TERMINUS.parse(answer("ls\n", task_complete=value)).done is done


def test_completion_with_broken_commands_still_completes() -> None:
    parsed = TERMINUS.parse(answer(commands="none", task_complete=True))
    assert parsed.done and parsed.commands == () and parsed.problems == ()
    assert any("must be a list" in said for said in parsed.warnings)


# --- terminus-json: what is a problem -------------------------------------------------------

PROBLEMS = [
    ("an empty text", "", "no JSON object"),
    ("prose", "I would run ls.", "no JSON object"),
    ("no commands", '{"analysis": "", "plan": ""}', 'no "commands"'),
    ("commands of a wrong type", answer(commands={"keystrokes": "ls"}), "must be a list"),
    ("a command that is text", answer(commands=["ls"]), "command 1 must be an object"),
    ("keystrokes missing", answer(commands=[{"duration": 1}]), 'command 1 needs "keystrokes"'),
    ("keystrokes of a wrong type", answer(commands=[{"keystrokes": 1}]), "command 1"),
    ("one bad command of two", answer(commands=[{"keystrokes": "ls"}, 3]), "command 2"),
    ("a NUL character", answer("a\0b\n"), "NUL"),
    ("an unescaped quote", PLAIN.replace("ls", 'echo "hi"'), 'is written \\"'),
    ("cut in the analysis", '{"analysis": "I see', 'before its "commands"'),
    ("cut in the first command", PLAIN[: PLAIN.index("ls") + 1], "inside its first command"),
    ("nested too deep", '{"a":' * 100, "nested deeper"),
]


@pytest.mark.parametrize(
    ("text", "message"), [p[1:] for p in PROBLEMS], ids=[p[0] for p in PROBLEMS]
)
def test_what_cannot_be_read_runs_nothing_and_says_why(text: str, message: str) -> None:
    parsed = TERMINUS.parse(text)
    assert parsed.commands == ()
    assert not parsed.done
    assert any(message in said for said in parsed.problems), parsed


# --- terminus-json: properties --------------------------------------------------------------

KEYSTROKES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).map(
    lambda text: f": {text}\n"
)
COMMANDS = st.lists(KEYSTROKES, min_size=1, max_size=4)
SOUP = st.lists(
    st.sampled_from(
        ["{", "}", "[", "]", ",", ":", '"', "\\", "\n", "```", "bash", "DONE", "<think>",
         "</think>", '"commands"', '"keystrokes"', '"task_complete"', "true", "1e999", "9" * 5000,
         "\ud800", "\\ud800", "\\u", "\0", " ", "ls"]
    ) | st.text(max_size=3),
    max_size=40,
).map("".join)  # fmt: skip


@given(st.text() | SOUP)
@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_no_text_makes_a_parser_raise_and_problems_run_nothing(name: str, text: str) -> None:
    parsed = protocol(name).parse(text)
    assert not (parsed.problems and (parsed.commands or parsed.done))
    assert parsed.problems or parsed.done or parsed.commands or name == "terminus-json"
    for command in parsed.commands:
        assert "\0" not in command.text
        command.text.encode()
    for said in (*parsed.problems, *parsed.warnings):
        said.encode()


@given(COMMANDS, st.data())
def test_a_cut_answer_runs_whole_commands_only(keystrokes: list[str], data: st.DataObject) -> None:
    whole = answer(*keystrokes)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    expected = texts(TERMINUS.parse(whole))
    ran = texts(TERMINUS.parse(cut))
    assert ran == expected[: len(ran)]
    assert not TERMINUS.parse(cut).done


@given(COMMANDS, st.text(st.characters(exclude_characters='{}"<', codec="utf-8")))
def test_noise_without_braces_changes_nothing(keystrokes: list[str], noise: str) -> None:
    whole = answer(*keystrokes, done=True)
    noisy = TERMINUS.parse(f"{noise}{whole}{noise}")
    assert (noisy.commands, noisy.done) == (TERMINUS.parse(whole).commands, True)


@given(COMMANDS)
def test_the_lenient_reader_agrees_with_the_strict_one(keystrokes: list[str]) -> None:
    whole = answer(*keystrokes)
    assert TERMINUS.parse(" " + whole + " x").commands == TERMINUS.parse(whole).commands


def test_an_adversarial_answer_is_read_in_bounded_work() -> None:
    for text in ('{"' * 20_000, '{"a":' * 20_000, '{"a":[' * 20_000, "{}" * 50_000, "[" * 50_000):
        assert TERMINUS.parse(text).commands == ()  # the test's deadline is the bound


# --- shell-block ----------------------------------------------------------------------------


@pytest.mark.parametrize("language", ["bash", "sh", "shell", "", "Bash"])
def test_a_shell_block_is_the_command(language: str) -> None:
    parsed = SHELL.parse(f"I list files.\n```{language}\ncd /tmp\n\nls\n```\nThat is all.")
    assert parsed == Parsed(commands=(Command(text="cd /tmp\n\nls"),))


def test_a_block_with_more_after_its_language_and_windows_line_ends_is_read() -> None:
    assert texts(SHELL.parse("```bash -e\r\ncd /\r\nls\r\n```\r\n")) == ["cd /\nls"]


def test_of_several_blocks_the_first_is_run_with_a_warning() -> None:
    parsed = SHELL.parse("```bash\nls\n```\n```\npwd\n```")
    assert texts(parsed) == ["ls"]
    assert "only the first of 2" in parsed.warnings[0]


def test_a_block_of_another_language_is_ignored() -> None:
    parsed = SHELL.parse("```python\nprint(1)\n```\n```bash\nls\n```")
    assert texts(parsed) == ["ls"]
    assert "python" in parsed.warnings[0]


def test_done_on_a_line_of_its_own_ends_the_episode() -> None:
    assert SHELL.parse("All is well.\n DONE \n") == Parsed(done=True)
    both = SHELL.parse("```bash\nls\n```\nDONE")
    assert both.done and texts(both) == ["ls"]


@pytest.mark.parametrize("text", ["I am DONE", "```bash\necho x\nDONE\n```", "done"])
def test_done_elsewhere_means_nothing(text: str) -> None:
    assert not SHELL.parse(text).done


def test_a_longer_fence_holds_a_shorter_one() -> None:
    parsed = SHELL.parse("````bash\ncat > README <<E\n```\ncode\n```\nE\n````")
    assert texts(parsed) == ["cat > README <<E\n```\ncode\n```\nE"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no bash block"),
        ("ls", "no bash block"),
        ("```bash\nrm -rf /tmp/x", "no closing"),
        ("```bash\n\n```", "empty"),
        ("```bash\na\0b\n```", "NUL"),
        ("<think>```bash\nls\n```", "inside <think>"),
    ],
)
def test_an_unusable_block_runs_nothing_and_says_why(text: str, message: str) -> None:
    parsed = SHELL.parse(text)
    assert parsed.commands == ()
    assert message in parsed.problems[0]


def test_a_block_in_reasoning_is_not_run() -> None:
    assert texts(SHELL.parse("```bash\nrm x\n```\n</think>\n```bash\nls\n```")) == ["ls"]


@given(st.lists(st.text(st.characters(exclude_characters="`\n\r\0", codec="utf-8")), min_size=1))
def test_a_block_survives_any_lines(lines: list[str]) -> None:
    body = "\n".join(lines)
    if body.strip():
        assert texts(SHELL.parse(f"```bash\n{body}\n```")) == [body]


# --- what the model is told -----------------------------------------------------------------


def done(*commands: str) -> Parsed:
    return Parsed(commands=tuple(Command(text=text) for text in commands))


def test_one_command_is_answered_with_its_output() -> None:
    result = CommandResult(exit_code=0, stdout=b"a\nb\n")
    assert SHELL.observe(done("ls"), [result]) == "a\nb"


def test_several_commands_are_told_apart() -> None:
    results = [
        CommandResult(exit_code=0, stdout=b"a\n"),
        CommandResult(exit_code=2, stderr=b"no\n"),
    ]
    told = SHELL.observe(done("ls", "cat x\nmore"), results)
    assert told == "$ ls\na\n$ cat x ...\n[stderr]\nno\n[exit code 2]"


@pytest.mark.parametrize(
    ("result", "told"),
    [
        (CommandResult(exit_code=0), "[no output]"),
        (CommandResult(exit_code=3), "[exit code 3]"),
        (CommandResult(exit_code=None, timed_out=True, duration_s=30.02),
         "[stopped: not finished after 30 s]"),
        (CommandResult(exit_code=None, shell_lost=True),
         "[the shell ended; the next command gets a fresh one]"),
        (CommandResult(exit_code=0, stdout=b"a", stdout_cut=7),
         "a\n[7 bytes were left out of the middle]"),
        (CommandResult(exit_code=0, stdout=b"\xff\xfe"), "\ufffd\ufffd"),
    ],
)  # fmt: skip
def test_each_way_to_end_is_named(result: CommandResult, told: str) -> None:
    assert SHELL.observe(done("x"), [result]) == told


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_problems_are_told_with_the_format(name: str) -> None:
    told = protocol(name).observe(Parsed(problems=("it was odd",)), [])
    assert "- it was odd" in told
    assert "Answer with one" in told


def test_warnings_come_before_the_output() -> None:
    previous = Parsed(commands=(Command(text="ls"),), warnings=("careful",))
    told = SHELL.observe(previous, [CommandResult(exit_code=0, stdout=b"a")])
    assert told == "About your last answer:\n- careful\n\na"


def test_fewer_results_than_commands_are_shown_as_they_are() -> None:
    assert SHELL.observe(done("a", "b"), [CommandResult(exit_code=0)]) == "$ a\n[no output]"
    assert SHELL.observe(done(), []) == "[no command was run]"


def printed(text: str, screen: str = "the screen", **more: Any) -> CommandResult:
    return CommandResult(exit_code=None, stdout=text.encode(), screen=screen.encode(), **more)


def test_keystrokes_are_answered_with_what_they_printed_together() -> None:
    results = [printed("ls\nf\n$ "), printed("pwd\n/\n$ ")]
    told = TERMINUS.observe(done("ls\n", "pwd\n"), results)
    assert told == "New Terminal Output:\nls\nf\n$ pwd\n/\n$"


def test_where_lines_cannot_tell_the_screen_is_shown() -> None:
    results = [printed("vim f\n"), printed("", "~\n~\n-- INSERT --")]
    told = TERMINUS.observe(done("vim f\n", "i"), results)
    assert told == "Current Terminal Screen:\n~\n~\n-- INSERT --"
    assert TERMINUS.observe(done(""), [printed("")]) == "Current Terminal Screen:\nthe screen"


def test_a_wait_that_printed_nothing_hides_nothing() -> None:
    told = TERMINUS.observe(done("ls\n", ""), [printed("ls\nf\n$ "), printed("")])
    assert told == "New Terminal Output:\nls\nf\n$"


def test_what_was_left_out_and_a_lost_shell_are_told() -> None:
    told = TERMINUS.observe(done("exit\n"), [printed("exit", shell_lost=True, stdout_cut=7)])
    assert told.splitlines()[2:] == [
        "[7 bytes were left out of the middle]",
        "[the shell ended; what is typed next goes to a fresh one]",
    ]


def test_long_output_of_a_terminal_is_cut_in_the_middle() -> None:
    told = TERMINUS.observe(done("x"), [printed("a" * 9_000 + "b" * 9_000)])
    assert told.startswith("New Terminal Output:\naaa") and told.endswith("bbb")
    assert "[... 8000 bytes left out ...]" in told


@given(st.binary(max_size=200).map(lambda data: data * 200))
def test_the_output_fits_its_limit(data: bytes) -> None:
    told = SHELL.observe(done("x"), [CommandResult(exit_code=0, stdout=data)])
    assert len(told.encode()) <= LIMIT_BYTES + 60


def test_a_cut_keeps_both_ends_and_counts_what_it_left_out() -> None:
    text = "a" * 9_000 + "é" * 4_000 + "z" * 9_000
    cut = cut_middle(text, 10_000)
    assert cut.startswith("a" * 5_000) and cut.endswith("z" * 5_000)
    assert "[... 16000 bytes left out ...]" in cut


# --- what the server is handed --------------------------------------------------------------


def test_an_unknown_protocol_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="known: shell-block, terminus-json"):
        protocol("xml")


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_the_opening_holds_the_task_as_it_is(name: str) -> None:
    opening = protocol(name).opening("Write {braces} and {0} to f.\n")
    assert opening.endswith("Task:\nWrite {braces} and {0} to f.")
    assert len(opening) < 900


def test_the_versions_of_protocols_differ() -> None:
    assert TERMINUS.version == protocol("terminus-json").version != SHELL.version


FITTING = {
    "terminus-json": [answer("ls\n"), answer(done=True), answer("", "C-c")],
    "shell-block": [
        "```bash\nls\n```", "DONE", "I look.\n```bash\ncd /\n\nls -la\n```", "It works.\nDONE",
    ],
}  # fmt: skip
REFUSED = {
    "terminus-json": ["ls", '{"analysis": "a"}', answer() + "x"],
    "shell-block": ["ls", "```bash\n```", "```python\nx\n```", ""],
}


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_what_the_schema_or_grammar_allows_can_be_read(name: str) -> None:
    xgrammar = pytest.importorskip("xgrammar", reason="vLLM's grammar engine is not installed")
    end = 256
    tokens = [bytes([byte]) for byte in range(end)] + [b"</s>"]
    compiler = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo(tokens, stop_token_ids=[end]))
    one = protocol(name)
    schema, grammar = one.schema(), one.grammar()
    if schema is not None:
        compiled = compiler.compile_json_schema(json.dumps(schema))
    else:
        compiled = compiler.compile_grammar(grammar)

    def fits(text: str) -> bool:
        matcher = xgrammar.GrammarMatcher(compiled)
        return all(matcher.accept_token(token) for token in [*text.encode(), end])

    for text in FITTING[name]:
        assert fits(text), text
        assert one.parse(text).problems == () == one.parse(text).warnings
    for text in REFUSED[name]:
        assert not fits(text), text
