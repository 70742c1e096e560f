"""Configuration: what loads, what is refused, and in which words."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from headrace.configs.fields import Field, Table, tables, variants
from headrace.configs.load import ABSENT, difference, digest, load, presets, resolved
from headrace.configs.models import OracleConfig, RunConfig, VllmConfig
from headrace.errors import ConfigError


@pytest.fixture
def refuse(tmp_path: Path) -> Any:
    """The message that refuses a file with this text."""

    def message(text: str | bytes, *overrides: str) -> str:
        path = tmp_path / "run.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(ConfigError) as caught:
            load(path, overrides)
        return str(caught.value).replace(str(tmp_path) + "/", "")

    return message


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(None, overrides)
    return str(caught.value)


# --- loading --------------------------------------------------------------------------------


def test_nothing_given_is_the_defaults() -> None:
    assert load(None) == RunConfig()


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text('attempts = 4\n[tasks]\ninclude = ["a*", "b"]\n[policy]\ntype = "oracle"\n')
    config = load(path)
    assert config.attempts == 4
    assert config.tasks.include == ("a*", "b")
    assert config.policy == OracleConfig()


@pytest.mark.parametrize("name", presets())
def test_every_preset_loads(name: str) -> None:
    assert load(name) != RunConfig()


def test_the_three_presets_are_bundled() -> None:
    assert presets() == ("docker-gpu", "oracle", "quickstart")


@pytest.mark.parametrize("name", presets())
def test_every_preset_carries_its_own_command(name: str) -> None:
    from importlib import resources

    text = (resources.files("headrace.configs") / "presets" / f"{name}.toml").read_text()
    assert text.startswith(f"# headrace run {name} --out runs/{name}")


def test_a_file_of_a_presets_name_goes_before_the_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "oracle").write_text("attempts = 7")
    assert load("oracle").attempts == 7


# --- overrides ------------------------------------------------------------------------------


def test_an_override_goes_over_the_file() -> None:
    assert load("quickstart", ["limits.max_turns=9"]).limits.max_turns == 9


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("policy.model=weights", "weights"),
        ("policy.model=/models/a b", "/models/a b"),
        ('policy.model="5"', "5"),
        ("policy.model=a=b", "a=b"),
        ("policy.model=", ""),
        ("policy.served_model_name=none", None),
    ],
)
def test_a_bare_word_is_a_string(option: str, value: object) -> None:
    policy = load(None, [option]).policy
    assert isinstance(policy, VllmConfig)
    assert value in (policy.model, policy.served_model_name)


def test_the_last_override_of_a_key_counts() -> None:
    assert load(None, ["seed=1", "seed=2"]).seed == 2


def test_none_takes_a_limit_away() -> None:
    assert load(None, ["sandbox.memory_mb=none"]).sandbox.memory_mb is None


def test_none_stays_a_word_where_it_is_one() -> None:
    assert load(None, ["sandbox.network=none"]).sandbox.network == "none"


def test_a_list_can_be_set() -> None:
    assert load(None, ['tasks.include=["a", "b"]']).tasks.include == ("a", "b")


def test_another_type_begins_its_table_afresh() -> None:
    config = load("quickstart", ["policy.type=oracle"])
    assert config.policy == OracleConfig()
    assert config.limits == load("quickstart").limits


def test_the_same_type_keeps_the_table() -> None:
    assert load("quickstart", ["policy.type=vllm"]) == load("quickstart")


def test_a_type_given_after_its_keys_does_not_lose_them() -> None:
    config = load("quickstart", ["policy.commands=['ls']", "policy.type=scripted"])
    assert resolved(config)["policy"]["commands"] == ["ls"]


def test_an_override_without_a_value_is_refused() -> None:
    assert refused("foo") == ("--set foo: expected dotted.key=value, such as limits.max_turns=4")


def test_an_override_with_a_broken_list_is_refused() -> None:
    assert "--set tasks.include=[a: the value is not TOML" in refused("tasks.include=[a")


def test_an_override_below_a_value_is_refused(refuse: Any) -> None:
    text = refuse("[limits]\nmax_turns = 3", "limits.max_turns.x=1")
    assert "limits.max_turns is no table: it has no key `x`" in text


# --- refusals -------------------------------------------------------------------------------


def test_an_unknown_key_is_refused_with_its_line_and_the_nearest_name(refuse: Any) -> None:
    assert refuse("seed = 1\n[limits]\n\n# a comment\nmax_turn = 3\n") == (
        "run.toml:5: limits.max_turn: unknown key; did you mean `limits.max_turns`?"
    )


def test_an_unknown_override_names_the_option() -> None:
    assert refused("limits.max_turn=3") == (
        "--set limits.max_turn=3: limits.max_turn: unknown key; did you mean `limits.max_turns`?"
    )


def test_an_unknown_table_is_refused() -> None:
    assert "limit: unknown key; did you mean `limits`" in refused("limit.max_turns=3")


def test_a_key_of_another_table_is_pointed_there() -> None:
    assert "did you mean `limits.max_turns`?" in refused("engine.max_turns=3")


def test_a_key_of_another_policy_is_pointed_there() -> None:
    assert "it belongs to policy.type vllm" in refused("policy.type=oracle", "policy.model=x")


def test_a_key_like_no_other_gets_the_list() -> None:
    text = refused("store.zzz=3")
    assert "[store] has shard_mb, compression_level, fsync" in text


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("attempts=many", 'attempts: expected a whole number above 0, found "many" (a string)'),
        ("seed=1.5", "seed: expected a whole number, found 1.5 (a number)"),
        ("seed=true", "seed: expected a whole number, found true (true or false)"),
        ("attempts=0", "attempts: expected a whole number above 0, found 0"),
        ("store.fsync=1", "store.fsync: expected true or false, found 1 (a whole number)"),
        ("policy.model=5", "policy.model: expected a string, found 5 (a whole number)"),
        ("tasks.include=x", 'tasks.include: expected a list of strings, found "x" (a string)'),
        ("tasks.include=['a', 3]", "tasks.include[1]: expected a string, found 3"),
        ("policy.server.port=70000", "expected a whole number from 0 to 65535, found 70000"),
        ("limits.agent_timeout_s=inf", 'expected a number above 0, or "none", found inf'),
        ("policy.sampling.temperature=nan", "expected a number at least 0, found nan"),
        ("limits.agent_timeout_s=2026-01-01", "found 2026-01-01 (a date or time)"),
        ("limits=3", "limits: expected a table, found 3 (a whole number)"),
        ("policy=3", "policy: expected a table, found 3 (a whole number)"),
        ("limits.max_turns={a=1}", "limits.max_turns: expected a whole number above 0, found a "),
        ("limits.max_turns=none", 'expected a whole number above 0, found "none" (a string)'),
    ],
)
def test_a_wrong_value_says_what_was_expected_and_found(option: str, expected: str) -> None:
    text = refused(option)
    assert text.startswith(f"--set {option}: ")
    assert expected in text


def test_a_mistyped_choice_is_told_the_nearest() -> None:
    assert refused("sandbox.provider=dokcer").endswith(
        'sandbox.provider: expected "auto", "docker" or "namespace", '
        'found "dokcer"; did you mean "docker"?'
    )


def test_an_unknown_policy_lists_the_known_ones() -> None:
    text = refused("policy.type=vlm")
    assert 'expected "vllm", "oracle", "noop", "scripted" or "replay", found "vlm"' in text
    assert 'did you mean "vllm"?' in text


def test_a_policy_table_without_a_type_is_of_the_default_type() -> None:
    assert load(None, ["policy.model=x"]).policy == VllmConfig(model="x")


def test_a_missing_key_is_named_with_what_it_is() -> None:
    assert refused("policy.type=replay").endswith(
        "policy.run: missing; expected a string: The run folder to replay."
    )


def test_all_problems_are_told_at_once_in_the_order_of_the_file(refuse: Any) -> None:
    text = refuse(
        'attempts = "x"\n[policy]\ntype = "vlm"\nmodle = "m"\n'
        "[tasks]\ninclude = [\n  'a',\n  3,\n]\nnone = 1\n",
        "oops",
        "seed=x",
    )
    places = [line.split(": ")[0].strip() for line in text.splitlines()[1:]]
    assert text.splitlines()[0] == "7 problems in the configuration:"
    assert places == [
        "--set oops", "--set seed=x",
        "run.toml:1", "run.toml:3", "run.toml:4", "run.toml:6", "run.toml:10",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"a = 1\nb = = 2\n", "run.toml: this is not TOML: Invalid value (at line 2, column 5)"),
        (b"a = [1,\n", "(at line 1, column 8: the end of the file)"),
        (b"a = 1\na = 2\n", "(at line 2"),
        (b"a = 1\nb = '\xff'\n", "run.toml:2: expected UTF-8 text, found byte 0xff"),
    ],
)
def test_a_broken_file_is_refused_with_its_place(refuse: Any, text: bytes, expected: str) -> None:
    assert expected in refuse(text)


def test_a_missing_file_is_told_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").touch()
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "quickstrat.toml")
    text = str(caught.value)
    assert "no such file" in text
    assert "Did you mean the preset `quickstart`?" in text
    assert "mine.toml" in text
    assert "Presets: docker-gpu, oracle, quickstart." in text


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a TOML file, found a folder"):
        load(tmp_path)


# --- misspelling ----------------------------------------------------------------------------

FIELDS: list[tuple[Table, Field]] = [(t, f) for t in tables() for f in t.fields.values()]
LETTERS = "abcdefghijklmnopqrstuvwxyz_"


def _edits(word: str) -> set[str]:
    """Every word one slip of the fingers away."""
    splits = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    return (
        {a + b[1:] for a, b in splits if b}
        | {a + b[1] + b[0] + b[2:] for a, b in splits if len(b) > 1}
        | {a + c + b[1:] for a, b in splits if b for c in LETTERS}
        | {a + c + b for a, b in splits for c in LETTERS}
    )


@given(data=st.data(), which=st.sampled_from(FIELDS))
def test_any_misspelt_key_gets_the_right_suggestion(
    data: st.DataObject, which: tuple[Table, Field]
) -> None:
    table, field = which
    assume(field.name != "type")
    slip = data.draw(st.sampled_from(sorted(_edits(field.name) - {""})))
    siblings = set(table.fields) - {field.name}
    assume(slip not in table.fields and not any(slip in _edits(s) for s in siblings))
    options = [f"{f'{table.path}.' if table.path else ''}{slip}=1"]
    if table.variant is not None:
        options.insert(0, f"policy.type={table.variant[1]}")
        if table.variant[1] == "replay":
            options.insert(1, "policy.run=x")
    text = refused(*options)
    told = next(line for line in text.splitlines() if "unknown key" in line)
    assert f"`{field.path}`" in told.split("unknown key", 1)[1]


@given(which=st.sampled_from(FIELDS), value=st.sampled_from([-(10**9), 1.5, "?", True, [None]]))
def test_a_value_is_kept_as_it_is_or_refused_with_its_path(
    which: tuple[Table, Field], value: Any
) -> None:
    """Never converted: what loads is what was given."""
    from headrace.configs.places import Override

    table, field = which
    assume(table.variant is None or table.variant[1] == "vllm")
    keys = tuple(field.path.split("."))
    data: Any
    try:
        data = resolved(load(None, [Override(keys=keys, value=value, shown="here")]))
    except ConfigError as e:
        assert str(e).startswith(f"here: {field.path}")
        return
    for key in keys:
        data = data[key]
    assert data == value
    assert isinstance(data, bool) == isinstance(value, bool)


# --- identity -------------------------------------------------------------------------------


def test_the_digest_is_of_the_meaning_not_of_the_text(tmp_path: Path) -> None:
    a, b = tmp_path / "a.toml", tmp_path / "b.toml"
    a.write_text("# one\nseed = 3\n[limits]\nmax_turns = 5\n")
    b.write_text("limits = { max_turns = 5 }\nseed=3\nattempts = 1\n")
    assert digest(load(a)) == digest(load(b))
    assert digest(load(a)) != digest(load(a, ["seed=4"]))


def test_the_digest_of_the_defaults_does_not_depend_on_the_process() -> None:
    config = load("oracle")
    assert digest(config) == digest(resolved(config))
    assert len(digest(config)) == 64


def test_a_resolved_configuration_loads_again() -> None:
    config = load("quickstart")
    assert RunConfig.model_validate_json(config.model_dump_json()) == config
    assert difference(resolved(config), resolved(config)) == []


def test_the_difference_names_path_and_both_values() -> None:
    a = resolved(load("oracle"))
    b = resolved(load("oracle", ["limits.max_turns=5", "tasks.include=['x']"]))
    assert difference(a, b) == [("limits.max_turns", 20, 5), ("tasks.include", [], ["x"])]


def test_a_key_that_one_side_lacks_is_absent_not_none() -> None:
    a, b = resolved(load("oracle")), resolved(load(None, ["policy.base_url=none"]))
    found = {path: (x, y) for path, x, y in difference(a, b)}
    assert found["policy.base_url"] == (ABSENT, None)


# --- the models -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "table", tables(), ids=lambda t: f"{t.path}-{t.variant[1] if t.variant else ''}"
)
def test_every_table_and_key_has_a_text(table: Table) -> None:
    assert table.text
    assert [f.path for f in table.fields.values() if not f.text] == []


def test_every_policy_is_known_to_the_tables() -> None:
    assert variants() == {"policy": ("vllm", "oracle", "noop", "scripted", "replay")}


def test_a_loaded_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        load(None).seed = 5  # type: ignore[misc]


def test_every_default_can_be_written_in_a_file() -> None:
    """TOML has no null: a key whose default is None says so with "none"."""
    for _, field in FIELDS:
        if field.nullable and not field.is_table and field.default is None:
            text = f'value = "none" # {field.path}'
            assert tomllib.loads(text) == {"value": "none"}
            assert '"none"' in field.words


@pytest.mark.parametrize(
    ("value", "found"), [("0", "0"), ("many", '"many"'), ("aut", '"aut"; did you mean "auto"?')]
)
def test_a_key_of_several_kinds_is_one_problem(value: str, found: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(None, [f"engine.live={value}"])
    expected = f'engine.live: expected a whole number above 0 or "auto", found {found}'
    assert str(refused.value).endswith(expected)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("nonsense", "expected an address such as http://127.0.0.1:8000, found 'nonsense'"),
        ("http://", "found 'http://'"),
        ("http://a:99999", "found 'http://a:99999'"),
        ("ftp://a", "found 'ftp://a'"),
        ('["http://a:1", "a:2"]', "found 'a:2'"),
        ('["http://a:1", "http://a:1/v1/"]', "expected each server once, found one of them twice"),
    ],
)
def test_what_is_no_address_of_a_server_is_told_before_anything_starts(
    value: str, found: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        load(None, [f"policy.base_url={value}"])
    assert "policy.base_url: " in str(refused.value)
    assert str(refused.value).endswith(found)


def test_addresses_of_servers_are_one_or_a_list() -> None:
    assert load(None, ["policy.base_url=http://a:1"]).policy.base_url == "http://a:1"  # type: ignore[union-attr]
    two = load(None, ['policy.base_url=["http://a:1", "http://b:1"]']).policy
    assert two.base_url == ("http://a:1", "http://b:1")  # type: ignore[union-attr]
    for value in ("[]", '["http://a:1", 3]', "3"):
        with pytest.raises(
            ConfigError, match="expected a string or a list of one or more strings"
        ) as refused:
            load(None, [f"policy.base_url={value}"])
        assert "\n" not in str(refused.value)
