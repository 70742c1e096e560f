"""Dockerfiles as data."""

import pytest

from headrace.errors import ImageError
from headrace.tasks.dockerfile import expand, inspect, parse


def values(text: str) -> list[tuple[str, str]]:
    return [(found.name, found.value) for found in parse(text)]


def test_bases_are_the_images_that_are_no_stages() -> None:
    text = "FROM --platform=linux/amd64 a:1 AS build\nFROM scratch\nFROM build\nfrom b@sha256:0\n"
    assert inspect(parse(text)).bases == ("a:1", "b@sha256:0")


def test_a_base_may_come_from_an_argument() -> None:
    text = "ARG TAG=3.12\nARG FULL=python:${TAG}-slim\nFROM ${FULL}\n"
    assert inspect(parse(text)).bases == ("python:3.12-slim",)


@pytest.mark.parametrize(
    "lines",
    [
        "RUN <<EOF\necho one\nEOF",
        "RUN cat <<-'EOF' > x\n\techo one\n\tEOF",
        "COPY <<EOF /x\none\nEOF",
        "RUN --mount=type=cache,target=/c true",
        "COPY --from=a --link /x /y",
        "COPY --chmod=755 x /y",
    ],
)
def test_what_needs_buildkit_is_named_with_its_line(lines: str) -> None:
    (found,) = inspect(parse(f"FROM a\n{lines}\nRUN true\n")).buildkit
    assert "line 2" in found


@pytest.mark.parametrize(
    "line",
    [
        "COPY --chown=1:1 --from=b x y",
        "RUN cat <<<word && echo $((1 << 3))",
        "RUN echo $((1<<A))",
        "RUN echo 'one <<EOF two' \"<<EOF\"",
        'RUN ["cat", "<<EOF"]',
        "RUN cat <<EOF",
    ],
)
def test_plain_instructions_need_no_buildkit(line: str) -> None:
    assert inspect(parse(f"FROM a\n{line}\nRUN true\n")).buildkit == ()


def test_the_body_of_a_here_document_is_no_instruction() -> None:
    text = "FROM a\nRUN <<ONE cat <<-TWO\nFROM b\n# kept\nONE\n\tRUN c\n\tTWO\nRUN last\n"
    found = parse(text)
    assert [one.name for one in found] == ["FROM", "RUN", "RUN"]
    assert found[1].bodies == ("FROM b\n# kept\nONE\n", "\tRUN c\n\tTWO\n")
    assert [one.line for one in found] == [1, 2, 8]


def test_lines_that_go_on_are_joined_and_comments_between_are_dropped() -> None:
    text = "FROM a\nRUN one \\\n# no\n\n   two \\  \n three\nRUN x\\\\\nUSER me\n"
    assert values(text) == [
        ("FROM", "a"),
        ("RUN", "one    two  three"),
        ("RUN", "x\\\\"),
        ("USER", "me"),
    ]


def test_the_escape_directive_counts_at_the_top_only() -> None:
    assert values("# escape=`\nFROM a\nRUN one `\n two\nRUN c:\\\nUSER x\n")[1:] == [
        ("RUN", "one  two"),
        ("RUN", "c:\\"),
        ("USER", "x"),
    ]
    assert values("FROM a\n# escape=`\nRUN one \\\n two\n")[1:] == [("RUN", "one  two")]


def test_line_ends_of_other_systems_and_a_byte_order_mark_are_read() -> None:
    assert values("\ufeffFROM a\r\nRUN one \\\r\n two\r\n") == [("FROM", "a"), ("RUN", "one  two")]


def test_what_is_no_instruction_is_an_error_with_its_line() -> None:
    with pytest.raises(ImageError, match="line 2: an instruction was expected, found '\\?!'"):
        parse("FROM a\n?!\n")


def test_variables_have_defaults() -> None:
    env = {"A": "1", "EMPTY": ""}
    assert expand("$A ${B:-two} ${EMPTY:-three} ${EMPTY-four} ${A:+five} \\$A", env) == (
        "1 two three  five $A"
    )
