"""What becomes of a compose file, and where its networks come from. Pure."""

import os
import tempfile
from ipaddress import IPv4Network
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import SandboxError, TaskError
from headrace.sandbox.base import Limits, SandboxSpec
from headrace.sandbox.compose import base_document, files_named, refusal, variables, wanted
from headrace.sandbox.compose_files import Scratch, scan
from headrace.sandbox.compose_networks import RANGES, routes, subnets
from headrace.sandbox.compose_project import Names, networks_of, own_command, project
from headrace.sandbox.docker_storage import can_limit
from headrace.types import ComposeFile, EnvironmentRecipe

COMPOSE = ComposeFile(path="/t/docker-compose.yaml", context="/t")
ROUTES = """Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
eth0	00000000	010200C0	0003	0	0	0	00000000	0	0	0
eth0	0000D50A	00000000	0001	0	0	0	0000FFFF	0	0	0
"""


def made(services: dict[str, Any], **changes: Any) -> dict[str, Any]:
    document = {"services": services}
    spec = SandboxSpec(image="i", episode="e", compose=COMPOSE, **changes)
    networks = {name: f"p_{name}" for name in networks_of(document)}
    names = Names(project="p", networks=networks, labels={"owner": "me"})
    return project(document, spec, names, dict.fromkeys(services, "i"), image_user="")


def test_the_agents_service_waits_for_its_shell_and_publishes_nothing() -> None:
    given = {"image": "x", "ports": [{"target": 80, "published": "8080"}], "restart": "always"}
    main = made({"main": given}, env={"PRICE": "5$"})["services"]["main"]
    assert main["stdin_open"] is True
    assert main["entrypoint"][:2] == ["sh", "-c"]
    assert "ports" not in main
    assert main["restart"] == "no"
    assert main["environment"] == {"PRICE": "5$$"}
    assert main["network_mode"] == "none"
    assert main["labels"] == {"owner": "me"}


def test_one_container_needs_no_network_of_its_own() -> None:
    assert networks_of({"services": {"main": {"networks": {"default": None}}}}) == []
    assert made({"main": {}}, network=True)["services"]["main"]["network_mode"] == "bridge"


def test_services_keep_the_names_they_are_known_by() -> None:
    out = made({"main": {}, "db": {"container_name": "the-db", "network_mode": ""}})
    assert out["networks"] == {"default": {"external": True, "name": "p_default"}}
    assert out["services"]["db"]["container_name"] == "p-db"
    assert out["services"]["db"]["networks"] == {"default": {"aliases": ["the-db"]}}


def test_limits_of_the_file_stand_and_ours_fill_the_gaps() -> None:
    deploy = {"resources": {"limits": {"cpus": "0.5", "memory": "1g"}}}
    out = made({"main": {"deploy": deploy}, "db": {}}, limits=Limits(cpus=2, memory_mb=64, pids=9))
    main, other = out["services"]["main"], out["services"]["db"]
    assert (main["cpus"], main["mem_limit"], main["pids_limit"]) == (0.5, str(1 << 30), 9)
    assert (other["cpus"], other["mem_limit"], other["pids_limit"]) == (2, str(64 << 20), 9)
    assert "deploy" not in main


def test_a_file_lifts_no_limit_of_processes() -> None:
    limits = {"resources": {"limits": {"pids": -1}}}
    out = made({"main": {"pids_limit": -1}, "db": {"deploy": limits}}, limits=Limits(pids=9))
    assert [service["pids_limit"] for service in out["services"].values()] == [9, 9]


@pytest.mark.parametrize(
    ("command", "runs"),
    [
        (["sleep", "infinity"], False),
        (["sh", "-c", "sleep infinity"], False),
        (["tail", "-f", "/dev/null"], False),
        (["/bin/bash"], False),
        (None, False),
        (["sh", "-c", "service nginx start; sleep infinity"], True),
        (["mysqld"], True),
    ],
)
def test_a_command_that_only_waits_is_not_run(command: Any, runs: bool) -> None:
    assert bool(own_command({"command": command})) == runs


@pytest.mark.parametrize(
    ("service", "runs"),
    [
        ({}, ["/e", "$$x", "sh", "-c", "sleep infinity"]),
        ({"command": ["serve"], "entrypoint": None}, ["/e", "$$x", "serve"]),
        ({"command": ["serve"], "entrypoint": ["/own"]}, ["/own", "serve"]),
        ({"command": ["serve"], "entrypoint": []}, ["serve"]),
        ({"command": ["sh", "-c", "sleep infinity"], "entrypoint": []}, []),
    ],
)
def test_the_entrypoint_of_the_image_runs_unless_the_file_names_another(
    service: dict[str, Any], runs: list[str]
) -> None:
    document = {"services": {"main": {**service, "working_dir": "/w"}}}
    spec = SandboxSpec(image="i", episode="e", compose=COMPOSE, user="agent")
    main = project(
        document, spec, Names(project="p"), {"main": "i"}, image_user="me", entrypoint=("/e", "$x")
    )["services"]["main"]
    assert main["entrypoint"][3:] == ["sh", "agent", "", *(["/w", "me", *runs] if runs else [])]
    assert main["command"] == []


def test_harbor_lays_a_command_that_waits_under_the_file_and_terminal_bench_does_not() -> None:
    client = ComposeFile(path="/t/c.yaml", context="/t", service="client")
    assert base_document(COMPOSE)["services"]["main"]["command"][-1] == "sleep infinity"
    assert "command" not in base_document(client)["services"]["client"]


def test_variables_that_steer_programs_are_not_handed_on() -> None:
    recipe = EnvironmentRecipe(
        compose=COMPOSE, env={"LD_PRELOAD": "x", "DOCKER_HOST": "y", "https_proxy": "z", "A": "a"}
    )
    text = "$LD_PRELOAD ${DOCKER_HOST} $https_proxy ${A} ${TEST_DIR:-x}"
    assert wanted(variables(recipe), text) == {"A": "a", "TEST_DIR": "/tests"}


def test_every_file_that_a_compose_file_reads_is_seen() -> None:
    document = {
        "include": ["a.yaml", {"path": ["b.yaml"], "env_file": "c.env"}],
        "services": {
            "one": {"env_file": [{"path": "d.env"}, "e.env"], "label_file": "f"},
            "two": {"extends": {"file": "g.yaml", "service": "x"}},
            "three": None,
        },
    }
    assert [path for _, path in files_named(document)] == [
        "a.yaml", "b.yaml", "c.env", "d.env", "e.env", "f", "g.yaml",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"type": "tmpfs", "device": "tmpfs", "o": "size=1m,uid=1000"}, False),
        ({"type": "tmpfs", "device": "/etc", "o": "size=1m,bind"}, True),
        ({"type": "tmpfs", "o": "rw,rbind"}, True),
        ({"type": "none", "device": "/etc", "o": "bind"}, True),
        ({"type": "nfs", "device": ":/x"}, True),
    ],
)
def test_a_volume_of_memory_cannot_be_a_folder_of_the_host(
    options: dict[str, str], refused: bool
) -> None:
    document = {"services": {"main": {}}, "volumes": {"v": {"driver_opts": options}}}
    assert ("driver_opts" in (refusal(document, COMPOSE) or "")) is refused


@pytest.mark.parametrize("key", ["network_mode", "pid", "ipc", "uts"])
@pytest.mark.parametrize("value", ["host", "container:abc", "networkofsomebody"])
def test_a_namespace_of_somebody_else_is_refused(key: str, value: str) -> None:
    assert f"{key}: {value}" in str(refusal({"services": {"main": {key: value}}}, COMPOSE))


def test_the_default_network_is_no_way_round_the_tasks_network() -> None:
    document = {"services": {"main": {"network_mode": "default"}}}
    assert refusal(document, COMPOSE) is None
    assert made(document["services"])["services"]["main"]["network_mode"] == "none"


def test_without_network_no_setting_opens_ipv6_to_this_machine() -> None:
    sysctls = {"net.ipv6.conf.all.disable_ipv6": "0", "net.core.somaxconn": "64"}
    given = {"main": {"sysctls": sysctls}, "db": {}}
    assert made(given)["services"]["main"]["sysctls"] == {"net.core.somaxconn": "64"}
    assert made(given, network=True)["services"]["main"]["sysctls"] == sysctls


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("services: {main: {}}", ".env of the folder"),
        ("include: [{path: sub/a.yaml, project_directory: ../..}]", "the folder ../.."),
        ("include: [{path: [a.yaml, sub/b.yaml]}]", "names ../../x.env"),
        # It is no folder named `~`: it is the home of whoever runs this.
        ("services: {main: {env_file: ~/.env}}", "env_file names ~/.env"),
        ("services: {main: {env_file: [{path: ~/.env}]}}", "env_file names ~/.env"),
        ("services: {main: {label_file: ~root/.env}}", "label_file names ~root/.env"),
        ("services: {main: {extends: {file: ~/a.yaml, service: x}}}", "extends names ~/a.yaml"),
        ("include: [~/a.yaml]", "include names ~/a.yaml"),
        ("include: [{path: a.yaml, env_file: ~/.env}]", "env_file names ~/.env"),
        ("include: [{path: a.yaml, project_directory: '~'}]", "the folder ~"),
    ],
)
def test_no_file_of_the_host_is_read_by_an_include_or_a_link(
    tmp_path: Path, text: str, why: str
) -> None:
    root = tmp_path / "environment"
    (root / "sub").mkdir(parents=True)
    (root / "~").mkdir()
    leaves = "services: {x: {env_file: ../../x.env}}"
    for name, content in (("c.yaml", text), ("a.yaml", "{}"), ("sub/a.yaml", leaves),
                          ("sub/b.yaml", leaves), ("~/a.yaml", "{}")):  # fmt: skip
        (root / name).write_text(content)
    if why.startswith(".env"):
        (root / ".env").symlink_to("/etc/hosts")
    with pytest.raises(TaskError, match=why):
        scan(ComposeFile(path=str(root / "c.yaml"), context=str(root)))


async def test_a_mounted_folder_that_cannot_be_copied_fails_its_episode_alone(
    tmp_path: Path,
) -> None:
    (tmp_path / "data").mkdir()
    os.mkfifo(tmp_path / "data" / "pipe")
    name = f"headrace-test-{os.getpid()}"
    with pytest.raises(SandboxError, match=r"compose file of e1 mounts: .*is a named pipe"):
        async with Scratch(name, "e1", [str(tmp_path / "data")]):
            pass
    assert not (Path(tempfile.gettempdir()) / name).exists()


def test_subnets_avoid_what_is_used_and_fit_the_services() -> None:
    used = [IPv4Network("10.213.0.0/24"), *routes(ROUTES)[1:]]
    first = next(subnets(used, hosts=2, start=0.0))
    assert first == IPv4Network("10.213.1.0/28")
    assert next(subnets(used, hosts=40, start=0.0)).prefixlen == 26
    assert len(set(islice(subnets([], hosts=2, start=0.3), 4096))) == 4096


def test_a_route_over_a_range_moves_on_to_the_next() -> None:
    found = routes(ROUTES)
    assert found == [IPv4Network("10.213.0.0/16")]
    assert next(subnets(found, hosts=2, start=0.5)).subnet_of(IPv4Network(RANGES[1]))


def test_storage_is_limited_where_the_driver_can() -> None:
    assert can_limit({"Driver": "btrfs"}) is True
    assert (
        can_limit({"Driver": "overlay2", "DriverStatus": [["Backing Filesystem", "extfs"]]})
        is False
    )
    assert (
        can_limit({"Driver": "overlay2", "DriverStatus": [["Backing Filesystem", "xfs"]]}) is None
    )
