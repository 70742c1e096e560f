"""The smaller tables of a task.toml: networks, artifacts, hooks, health checks, tool servers."""

from pathlib import Path

import pytest

from headrace.errors import TaskError
from headrace.tasks.harbor import read_harbor
from headrace.tasks.harbor_network import normal_host
from headrace.tasks.reading import Read
from headrace.types import Artifact, CollectHook, HealthCheck, McpServer, NetworkPolicy

BASE = '[environment]\ndocker_image = "x"\n'


def read(tmp_path: Path, toml: str) -> Read:
    """A small task whose task.toml says `toml` behind its `[environment]`."""
    root = tmp_path / "t"
    (root / "tests").mkdir(parents=True)
    (root / "tests" / "test.sh").write_text("#!/bin/sh\n")
    (root / "instruction.md").write_text("Do it.\n")
    (root / "task.toml").write_text(toml)
    return read_harbor(root, {"HERE": "there"})


# --- networks -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "normal"),
    [
        ("Example.ORG.", "example.org"),
        (" pypi.org ", "pypi.org"),
        ("*.Example.com", "*.example.com"),
        ("localhost", "localhost"),
        ("192.0.2.7", "192.0.2.7"),
        ("192.0.2.0/24", "192.0.2.0/24"),
        ("2001:0DB8::0001", "2001:db8::1"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("", None),
        (".", None),
        ("https://example.org", None),
        ("example.org:443", None),
        ("example.org/path", None),
        ("192.0.2.1/24", None),
        ("192.0.2.0/33", None),
        ("[2001:db8::1]", None),
        ("fe80::1%eth0", None),
        ("*", None),
        ("*.", None),
        ("*.192.0.2.1", None),
        ("a.*.org", None),
        ("a..org", None),
        ("-a.org", None),
        ("under_score.org", None),
        ("bücher.example", None),
        ("a" * 64 + ".org", None),
        ("a." * 130 + "org", None),
        ("user@example.org", None),
    ],
)
def test_a_host_has_one_form_or_is_none(entry: str, normal: str | None) -> None:
    assert normal_host(entry) == normal


def test_each_phase_has_its_own_network_or_the_environments(tmp_path: Path) -> None:
    task = read(
        tmp_path,
        '[agent]\nnetwork_mode = "no-network"\n'
        '[verifier]\nnetwork_mode = "allowlist"\nallowed_hosts = ["B.org", "b.org.", "a.org"]\n'
        f'{BASE}network_mode = "public"\n',
    ).task
    assert task.environment.network == NetworkPolicy()
    assert task.agent.network == NetworkPolicy(mode="none")
    assert task.verifier.network == NetworkPolicy(
        mode="allowlist", allowed_hosts=("b.org", "a.org")
    )


# --- what is read ---------------------------------------------------------------------------


def test_artifacts_are_texts_and_tables(tmp_path: Path) -> None:
    one = read(
        tmp_path,
        'artifacts = ["out", {source = "/var/log", destination = "logs", exclude = ["*.gz"]},\n'
        '  {source = "/data", service = "db"}, {source = "/other/out", destination = "out"}]\n'
        + BASE,
    )
    assert one.task.artifacts == (
        Artifact(source="out"),
        Artifact(source="/var/log", destination="logs", exclude=("*.gz",)),
        Artifact(source="/data", service="db"),
        Artifact(source="/other/out", destination="out"),
    )
    assert one.warnings == (
        "artifacts: 'out' and '/other/out' are both kept at 'out'; the first one counts",
        "the service 'db' is asked for files, and the task has none of this name",
    )


def test_hooks_health_checks_and_tool_servers_are_read(tmp_path: Path) -> None:
    one = read(
        tmp_path,
        "[[verifier.collect]]\ncommand = '''\npg_dump a\nls'''\nuser = 70\ntimeout_sec = 5\n"
        f"{BASE}[environment.healthcheck]\ncommand = 'true'\nstart_period_sec = 9\nretries = 0\n"
        '[[environment.mcp_servers]]\nname = "web"\nurl = "http://localhost:1/sse"\n'
        '[[environment.mcp_servers]]\nname = "tool"\ntransport = "stdio"\ncommand = "run"\n'
        'args = ["-x"]\n'
        '[[environment.mcp_servers]]\nname = "new"\ntransport = "http"\nurl = "http://a/mcp"\n'
        'headers = {Authorization = "Bearer ${TOKEN}"}\n',
    )
    assert one.task.verifier.collect == (
        CollectHook(command="pg_dump a\nls", user="70", timeout_s=5.0),
    )
    assert one.task.environment.healthcheck == HealthCheck(
        command="true", start_period_s=9.0, retries=1
    )
    assert one.task.environment.mcp_servers == (
        McpServer(name="web", url="http://localhost:1/sse"),
        McpServer(name="tool", transport="stdio", command="run", args=("-x",)),
        McpServer(name="new", transport="streamable-http", url="http://a/mcp"),
    )
    assert one.task.inert == ("environment.mcp_servers.headers",)
    assert "retries: 0 is read as 1" in one.warnings[0]


def test_an_image_and_a_folder_without_dockerfile_are_uploaded(tmp_path: Path) -> None:
    (tmp_path / "t" / "environment").mkdir(parents=True)
    (tmp_path / "t" / "environment" / "data.csv").write_text("1\n")
    assert read(tmp_path, BASE).task.environment.upload_context


# --- what is refused ------------------------------------------------------------------------

BAD: list[tuple[str, str]] = [
    ("gpus = 1", r"environment.gpus = 1: sandboxes have no GPU"),
    ('tpu = {type = "v6e", topology = "2x2"}', "environment.tpu: sandboxes have no TPU"),
    ('os = "windows"', "only Linux tasks"),
    ("gpus = -1", "environment.gpus: expected a whole number"),
    ("network_mode = 3", "environment.network_mode: expected"),
    ('network_mode = "allowlist"\nallowed_hosts = ["http://x"]',
     r"environment.allowed_hosts\[0\]: expected a host name, .* found 'http://x'"),
    ('network_mode = "allowlist"\nallowed_hosts = "x"', "allowed_hosts: expected a list of texts"),
    ('network_mode = "public"\nallowed_hosts = ["x"]', "needs network_mode = 'allowlist', found"),
    ("allow_internet = 3", "allow_internet: expected true or false, found 3"),
    ("healthcheck = {}", "environment.healthcheck.command: expected text, found nothing"),
    ("healthcheck = {command = 'x', timeout_sec = 0}", "timeout_sec: expected more than 0"),
    ("healthcheck = {command = 'x', interval_sec = -1}", "no negative number of seconds"),
    ("healthcheck = {command = 'x', retries = 1.5}", "retries: expected a whole number"),
    ("healthcheck = 'x'", "environment.healthcheck: expected a table"),
    ("mcp_servers = [{}]", r"mcp_servers\[0\].name: expected a name"),
    ("mcp_servers = [{name = 'a'}]", r"mcp_servers\[0\].url: expected the address"),
    ("mcp_servers = [{name = 'a', transport = 'stdio'}]", "command: expected the program"),
    ("mcp_servers = [{name = 'a', transport = 'tcp'}]", "transport: expected"),
    ("mcp_servers = [{name = 'a', url = 'u', headers = {A = 1}}]", "a table of texts"),
    ("mcp_servers = 1", "mcp_servers: expected a list of tables"),
    ("[verifier]\ncollect = [{}]", r"verifier.collect\[0\].command: expected text"),
    ("[verifier]\ncollect = [{command = 'x', service = 'a b'}]", "service: expected the name"),
    ("[verifier]\nallowed_hosts = ['x']", "verifier.allowed_hosts needs network_mode"),
    ("[agent]\nuser = -1", "agent.user: expected a line of text, found -1"),
    ("[agent]\nuser = []", "agent.user: expected a line of text"),
    ("[verifier]\nenvironment_mode = 'own'", '"shared" or "separate", found \'own\''),
    ("[verifier.environment]\ngpus = 2", "verifier.environment.gpus = 2: sandboxes have no GPU"),
    ("[verifier.environment]\nworkdir = 'x'", "verifier.environment.workdir: expected an absolute"),
]  # fmt: skip


@pytest.mark.parametrize(("toml", "message"), BAD)
def test_a_bad_field_is_refused_with_its_path(tmp_path: Path, toml: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        read(tmp_path, f"{BASE}{toml}\n")


ARTIFACTS: list[tuple[str, str]] = [
    ('"../x"', r"artifacts\[0\].source: expected a path of the sandbox without"),
    ('""', r"artifacts\[0\].source"),
    ("3", r"artifacts\[0\]: expected a path or a table, found 3"),
    ('{source = "a", destination = "/x"}', "destination: expected a relative path"),
    ('{source = "a", destination = "x/../y"}', "destination: expected a relative path"),
    (r'{source = "a", destination = "x\\y"}', "without '..' and backslashes"),
    ('{source = "a", destination = "manifest.json"}', "manifest.json lists the artifacts"),
    ('{source = "a", service = "db"}', "an absolute path, because it is of the service 'db'"),
    ('{source = "/a", service = "../db"}', "service: expected the name of a compose service"),
    ('{source = "/a", exclude = "x"}', "exclude: expected a list of texts"),
]


def test_a_thousand_artifacts_are_enough(tmp_path: Path) -> None:
    many = ", ".join(f'"a{i}"' for i in range(1001))
    with pytest.raises(TaskError, match="artifacts: expected at most 1000 entries"):
        read(tmp_path, f"artifacts = [{many}]\n{BASE}")


def test_of_many_unknown_keys_twenty_are_named(tmp_path: Path) -> None:
    odd = "".join(f"zzz{i} = 1\n" for i in range(30))
    warnings = read(tmp_path, BASE + odd).warnings
    assert len(warnings) == 21
    assert warnings[-1] == "10 more unknown keys"


@pytest.mark.parametrize(("entry", "message"), ARTIFACTS)
def test_a_bad_artifact_is_refused(tmp_path: Path, entry: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        read(tmp_path, f"artifacts = [{entry}]\n{BASE}")
