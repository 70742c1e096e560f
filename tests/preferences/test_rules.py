"""Rules as data: their defaults, and what is told of a file that is wrong."""

from pathlib import Path

import pytest

from headrace.errors import ConfigError
from headrace.preferences.rules import KINDS, Rule, load_rules, rule_of


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "rules.toml"
    path.write_text(text)
    return path


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as e:
        load_rules(write(tmp_path, text))
    return str(e.value).replace(str(tmp_path), "T")


def test_a_rule_is_named_after_its_kind() -> None:
    assert [rule_of(kind).name for kind in KINDS] == list(KINDS)


def test_each_kind_has_its_own_defaults() -> None:
    found = {
        kind: (rule.score, rule.min_margin, rule.min_winner, rule.per_task)
        for kind in KINDS
        for rule in [rule_of(kind)]
    }
    usual = ("auto", 0.25, 0.5, None)
    assert found == {
        "margin": usual,
        "best-worst": usual,
        "all-margins": ("auto", 0.25, 0.5, 4),
        "near-miss": ("pass-ratio", 0.0, 0.0, 4),
        "first-divergence": usual,
        "litecoder": ("pass-ratio", 0.0, 0.0, None),
    }


def test_nothing_questionable_is_kept_unless_asked_for() -> None:
    for kind in KINDS:
        rule = rule_of(kind)
        assert not (rule.timeouts or rule.ties or rule.infrastructure)


def test_every_value_has_a_text() -> None:
    assert all(field.description for field in Rule.model_fields.values())


def test_a_file_has_its_rules_in_order(tmp_path: Path) -> None:
    rules = load_rules(
        write(
            tmp_path,
            """
            [[rule]]
            kind = "all-margins"
            name = "wide"
            min_margin = 1
            per_task = "none"

            [[rule]]
            kind = "margin"
            ties = true
            """,
        )
    )
    wide, margin = rules
    assert (wide.name, wide.min_margin, wide.per_task) == ("wide", 1.0, None)
    assert (margin.name, margin.ties, margin.min_margin) == ("margin", True, 0.25)


def test_all_mistakes_are_told_at_once_with_their_lines(tmp_path: Path) -> None:
    told = refusal(
        tmp_path,
        """\
[[rule]]
kind = "margn"
min_margin = 2

[[rule]]
kind = "margin"
min_marign = 0.5
ties = "yes"
per_task = 0

[[rule]]
name = ""

[extra]
a = 1
""",
    )
    assert told.splitlines() == [
        "8 problems in T/rules.toml:",
        "  T/rules.toml: extra: unknown key; the file has [[rule]] tables",
        '  T/rules.toml:2: rule[0].kind: expected "margin", "best-worst", "all-margins",'
        ' "near-miss", "first-divergence" or "litecoder", found "margn"; did you mean "margin"?',
        "  T/rules.toml:3: rule[0].min_margin: expected a number from 0 to 1, found 2",
        "  T/rules.toml:7: rule[1].min_marign: unknown key; did you mean min_margin?",
        '  T/rules.toml:8: rule[1].ties: expected true or false, found "yes"',
        '  T/rules.toml:9: rule[1].per_task: expected a whole number above 0, or "none", found 0',
        '  T/rules.toml:11: rule[2].kind: missing; expected "margin", "best-worst",'
        ' "all-margins", "near-miss", "first-divergence" or "litecoder"',
        '  T/rules.toml:12: rule[2].name: expected a string that is not empty, found ""',
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "T/rules.toml: rule: expected at least one [[rule]] table, found nothing"),
        ("rule = []", "T/rules.toml: rule: expected at least one [[rule]] table, found a list"),
        (
            '[rule]\nkind = "margin"',
            "T/rules.toml: rule: expected at least one [[rule]] table, found a single table;"
            " write [[rule]]",
        ),
        ("rule = 1", "T/rules.toml: rule: expected at least one [[rule]] table, found 1"),
        (
            "[[rule]]\nkind = 'near-miss'\nscore = 'reward'",
            "T/rules.toml:1: rule[0]: near-miss compares pass ratios; leave score out, or take"
            " another kind",
        ),
        (
            "[[rule]]\nkind = 'margin'\nname = true",
            "T/rules.toml:3: rule[0].name: expected a string that is not empty, found true",
        ),
        (
            "[[rule]]\nkind = 'margin'\nlevel = 1",
            "T/rules.toml:3: rule[0].level: unknown key; a rule has name, kind, score, min_margin,"
            " min_winner, per_task, timeouts, ties, infrastructure",
        ),
        (
            "[[rule]]\nkind = 'margin'\n\n[[rule]]\nkind = 'margin'",
            'T/rules.toml:4: rule[1].name: expected names that differ, found "margin" again; give'
            " it a name",
        ),
    ],
)
def test_one_mistake_is_one_line(tmp_path: Path, text: str, told: str) -> None:
    assert refusal(tmp_path, text) == told


def test_what_is_no_toml_is_told_with_its_line(tmp_path: Path) -> None:
    assert "T/rules.toml: this is not TOML" in refusal(tmp_path, "[[rule]\nkind")
    assert "line 1" in refusal(tmp_path, "[[rule]\nkind")


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file.*expected a TOML file"):
        load_rules(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_rules(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"# \xe9")
    with pytest.raises(ConfigError, match="expected UTF-8 text"):
        load_rules(tmp_path / "latin.toml")


def test_options_of_the_command_line_are_named_as_such() -> None:
    with pytest.raises(ConfigError, match="^--min-margin: expected a number from 0 to 1, found 3"):
        rule_of("margin", min_margin=3, per_task=None)
    with pytest.raises(ConfigError, match=r"^--rule: expected .*found \"best\""):
        rule_of("best")
    with pytest.raises(ConfigError, match="^--rule litecoder: litecoder compares pass ratios"):
        rule_of("litecoder", score="reward")
    with pytest.raises(ConfigError, match="2 problems in options") as e:
        rule_of("margin", min_margin=float("nan"), per_task=0)
    assert "--per-task: expected a whole number above 0" in str(e.value)


def test_a_value_of_none_keeps_the_default() -> None:
    assert rule_of("margin", min_margin=None, ties=None) == rule_of("margin")
