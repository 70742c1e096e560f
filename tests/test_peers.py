"""What `bench.peers` computes, and what its scripted model says. The race itself is a benchmark."""

import json
import re
import subprocess
from array import array
from pathlib import Path

import pytest
from bench.peers.docs import RESULT, stored_table
from bench.peers.programs import Outcome, call
from bench.peers.run import at, chosen, lacking
from bench.peers.script import ANSWERS, CHECK, COMMANDS, SUBMIT, answer, given_in
from bench.peers.systems import SYSTEMS
from bench.peers.table import BEGIN, END, NOTHING, markdown, metrics, pages, with_table
from bench.peers.tasks import TASKS, write_tasks

from headrace.policies.protocols.registry import protocol
from headrace.tasks.catalog import load

ROOT = Path(__file__).parents[1]


def packed(*ids: int) -> bytes:
    return array("I", ids).tobytes()


def measured(**outcomes: list[Outcome]) -> dict[str, float | None]:
    return metrics(chosen(",".join(outcomes)), outcomes)


def rounds(*rates: float, cpu_s: float | None = None) -> list[Outcome]:
    return [Outcome(episodes=60, passed=60, seconds=60 / r, cpu_s=cpu_s) for r in rates]


def test_every_agent_is_given_the_same_commands() -> None:
    blocks = [protocol("shell-block").parse(text) for text in ANSWERS["shell-block"]]
    terminus = [protocol("terminus-json").parse(text) for text in ANSWERS["terminus-json"]]
    assert [p.problems for p in (*blocks, *terminus)] == [()] * 15
    shell = [c.text for p in blocks for c in p.commands if not c.keys]
    keys = [c.text for p in terminus for c in p.commands if c.keys]
    assert shell == list(COMMANDS)
    assert keys == [f"{command}\n" for command in COMMANDS]
    assert ANSWERS["bash-tool"] == (*COMMANDS, SUBMIT)


def test_an_agent_is_done_after_the_commands_and_terminus_is_asked_twice() -> None:
    done = [protocol("shell-block").parse(text).done for text in ANSWERS["shell-block"]]
    assert done == [False] * 6 + [True]
    done = [protocol("terminus-json").parse(text).done for text in ANSWERS["terminus-json"]]
    assert done == [False] * 6 + [True] * 2


def test_the_commands_solve_the_task_that_the_check_asks_for(tmp_path: Path) -> None:
    def here(text: str) -> str:
        return text.replace("/app", str(tmp_path / "app"))

    def check() -> int:
        return subprocess.run(["bash", "-c", here(CHECK)], timeout=10).returncode

    assert check() != 0
    for command in COMMANDS:
        subprocess.run(["bash", "-c", here(command)], check=True, timeout=10, capture_output=True)
    assert check() == 0


def test_after_the_last_answer_it_is_given_again() -> None:
    assert [answer("shell-block", n) for n in (0, 6, 7)] == [
        ANSWERS["shell-block"][0],
        "DONE",
        "DONE",
    ]


def test_a_prompt_of_tokens_tells_how_many_answers_it_holds() -> None:
    answers = [packed(5, 6), packed(7), packed(7)]
    opening = packed(1, 2, 7)
    assert given_in(opening, answers) == 0
    assert given_in(opening + packed(5, 6, 2), answers) == 1
    assert given_in(opening + packed(5, 6, 2, 7), answers) == 2
    assert given_in(opening + packed(5, 6, 2, 7, 2, 7), answers) == 3


def test_an_answer_is_found_at_whole_tokens_only() -> None:
    # The bytes of the token 1 << 24 | 1 hold those of 256, one byte off.
    assert given_in(packed(0x01000000, 0x00000001), [packed(0x00000101)]) == 0
    assert given_in(packed(0x01000000, 0x01000001, 0x00000101), [packed(0x00000101)]) == 1


def test_both_forms_of_the_tasks_can_be_read(tmp_path: Path) -> None:
    ours = load(str(write_tasks(tmp_path / "ours")))
    theirs = load(str(write_tasks(tmp_path / "theirs", image="an/image:1")))
    assert ours.problems == theirs.problems == ()
    assert len(ours.tasks) == len(theirs.tasks) == TASKS
    assert {task.environment.image for task in theirs.tasks} == {"an/image:1"}
    assert {task.environment.image for task in ours.tasks} == {None}


def test_a_rate_is_the_median_of_its_rounds_and_shows_their_spread() -> None:
    found = measured(verifiers=rounds(1.0, 4.0, 2.0, cpu_s=30.0))
    assert found == {
        "verifiers_eps_s": pytest.approx(2.0),
        "verifiers_eps_s_least": pytest.approx(1.0),
        "verifiers_eps_s_most": pytest.approx(4.0),
        "verifiers_rounds": 3,
        "verifiers_round_s": pytest.approx(30.0),
        "verifiers_cpu_s": pytest.approx(0.5),
        "verifiers_at_once": chosen("verifiers")[0].best,
    }


def test_ratios_are_given_where_both_sides_ran() -> None:
    both = {"headrace_docker": rounds(4.5), "docker_floor": rounds(5.0)}
    found = measured(**both, harbor=rounds(0.5))
    assert found["docker_over_floor"] == pytest.approx(0.9)
    assert found["docker_over_harbor"] == pytest.approx(9.0)
    assert "namespace_over_harbor" not in found
    assert "docker_over_harbor" not in measured(**both)


def test_the_table_is_markdown_with_the_default_concurrency_in_it() -> None:
    told = markdown(measured(harbor=rounds(0.5, cpu_s=240.0), asyncio_floor=rounds(125.0)))
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in told.splitlines()]
    assert len({len(row) for row in rows}) == 1
    harbor, floor = (system for system in SYSTEMS if system.name in ("harbor", "asyncio_floor"))
    assert rows[2] == [
        *(harbor.title, "**0.50**", "0.50 to 0.50", "1.00 x"),
        *("4.0 s", f"{harbor.best} (4)"),
    ]
    assert rows[3] == [floor.title, "**125**", "125 to 125", "", "", str(floor.best)]


def test_the_pages_show_the_stored_result_or_say_that_there_is_none() -> None:
    table = stored_table()
    assert (table == NOTHING) != RESULT.exists()
    for page in pages(ROOT):
        text = page.read_text()
        assert with_table(text, table) == text, f"{page.name}: python -m bench.peers.docs"


def test_a_page_without_the_marks_is_refused() -> None:
    assert with_table(f"a\n{BEGIN}\nold\n{END}\nb", "new") == f"a\n{BEGIN}\nnew\n{END}\nb"
    with pytest.raises(ValueError, match="once each"):
        with_table("nothing", "new")


def test_an_unknown_system_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SystemExit, match="no orca; expected some of harbor"):
        chosen("harbor,orca")
    assert [system.name for system in chosen("docker_floor,harbor")] == ["harbor", "docker_floor"]


def test_a_concurrency_may_be_given_in_place_of_the_one_that_is_written_down() -> None:
    ours, theirs = at(chosen("harbor,verifiers"), "verifiers=3")
    assert (ours.best, theirs.best) == (chosen("harbor")[0].best, 3)
    for wrong in ("harbor", "harbor=many", "orca=3"):
        with pytest.raises(SystemExit, match="expected NAME=NUMBER"):
            at(chosen(""), wrong)


def test_a_program_that_does_not_end_has_time_to_remove_what_it_made(tmp_path: Path) -> None:
    program = (
        "trap 'echo removed >removed; exit 0' INT; echo there >made; while :; do sleep 1; done"
    )
    with pytest.raises(SystemExit, match="expected an end within 2 s, found none"):
        call(["sh", "-c", program], tmp_path, deadline_s=2.0)
    assert (tmp_path / "removed").read_text() == "removed\n"


def test_a_program_that_fails_is_shown_with_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"(?s)sh ended with 3:.*out.*err"):
        call(["sh", "-c", "echo out; echo err >&2; exit 3"], tmp_path)
    assert call(["sh", "-c", "echo out"], tmp_path)[0] == "out\n"


def test_floors_need_no_peer() -> None:
    assert lacking([system for system in SYSTEMS if system.floor]) == []


def test_titles_name_the_versions_that_the_script_installs() -> None:
    script = (ROOT / "scripts" / "install-peers.sh").read_text()
    script += (ROOT / "scripts" / "install-harbor.sh").read_text()
    versions = [
        found[0]
        for system in SYSTEMS
        if (found := re.search(r"\d+\.\d+\.\d+", system.title)) is not None
    ]
    assert len(versions) == 3
    assert [version for version in versions if version not in script] == []


def test_a_system_says_how_many_calls_the_script_has() -> None:
    calls = {system.name: system.calls for system in SYSTEMS if not system.floor}
    assert calls["harbor"] == len(ANSWERS["terminus-json"])
    assert calls["mini_swe_agent"] == len(ANSWERS["bash-tool"])
    assert calls["headrace_docker"] == len(ANSWERS["shell-block"])
    assert json.loads(ANSWERS["terminus-json"][0])["task_complete"] is False
