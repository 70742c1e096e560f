"""What the fake promises to the tests and measurements that stand on it."""

import asyncio
from pathlib import Path

import pytest

from headrace.errors import ContractError, ProviderGone, SandboxError
from headrace.sandbox.archive import upload
from headrace.sandbox.base import Provider, Sandbox, SandboxSpec
from headrace.sandbox.fake import Call, FakeProvider
from headrace.types import CommandResult, EnvironmentRecipe

SPEC = SandboxSpec(image="fake", episode="e1")


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_it_is_a_provider_and_opens_sandboxes() -> None:
    provider: Provider = FakeProvider()
    async with provider, provider.open(SPEC) as opened:
        sandbox: Sandbox = opened
        assert await sandbox.run("anything", timeout_s=1) == CommandResult(exit_code=0)


async def test_a_mapping_answers_by_command_and_refuses_the_rest() -> None:
    failed = CommandResult(exit_code=3, stderr=b"no\n")
    async with FakeProvider({"ls": b"a b\n", "bad": failed}).open(SPEC) as sandbox:
        assert (await sandbox.run("ls", timeout_s=1)).stdout == b"a b\n"
        assert await sandbox.run("bad", timeout_s=1) is failed
        missing = await sandbox.run("pwd", timeout_s=1)
        assert (missing.exit_code, missing.stderr) == (127, b"not in the script: pwd\n")


async def test_a_callable_answers_with_a_result_or_an_error() -> None:
    def script(command: str) -> bytes | Exception:
        return SandboxError("lost") if command == "die" else command.encode()

    async with FakeProvider(script).open(SPEC) as sandbox:
        assert (await sandbox.run("echo", timeout_s=1)).stdout == b"echo"
        with pytest.raises(SandboxError, match="lost"):
            await sandbox.run("die", timeout_s=1)


async def test_exec_has_a_script_of_its_own() -> None:
    provider = FakeProvider({"x": b"run"}, exec_script={"x": b"exec"})
    async with provider.open(SPEC) as sandbox:
        assert (await sandbox.run("x", timeout_s=1)).stdout == b"run"
        assert (await sandbox.exec("x", timeout_s=1)).stdout == b"exec"


async def test_every_call_is_written_down_in_order() -> None:
    provider = FakeProvider()
    async with provider.open(SPEC) as sandbox:
        await sandbox.run("one", timeout_s=1)
        await sandbox.exec("two", timeout_s=1, stdin=b"in")
        await sandbox.write("/f", b"data")
        await sandbox.read("/f")
    assert provider.calls == [
        Call("e1", "run", "one"),
        Call("e1", "exec", "two", b"in"),
        Call("e1", "write", "/f", b"data"),
        Call("e1", "read", "/f"),
        Call("e1", "close", ""),
    ]


async def test_nothing_is_written_down_when_that_is_asked_for() -> None:
    provider = FakeProvider(record=False)
    async with provider.open(SPEC) as sandbox:
        await sandbox.run("one", timeout_s=1)
    assert provider.calls == []


async def test_an_upload_is_accepted_and_its_archive_kept(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("inside")
    provider = FakeProvider()
    async with provider.open(SPEC) as sandbox:
        await upload(sandbox, tmp_path, "/tests")
    assert "/tests" in provider.calls[0].subject
    assert b"inside" in provider.calls[0].data


async def test_files_are_read_as_the_contract_says() -> None:
    spec = SandboxSpec(image="fake", episode="e1", workdir="/app")
    async with FakeProvider(files={"/app/in/f": b"12345"}).open(spec) as sandbox:
        assert await sandbox.read("in/f", max_bytes=5) == b"12345"
        with pytest.raises(OverflowError):
            await sandbox.read("/app/in/f", max_bytes=4)
        with pytest.raises(FileNotFoundError):
            await sandbox.read("/app/in/none")
        for folder in ("/app/in", "/app/", "/"):
            with pytest.raises(IsADirectoryError):
                await sandbox.read(folder)


async def test_what_one_sandbox_writes_no_other_sees() -> None:
    provider = FakeProvider(files={"/f": b"given"})
    other = SandboxSpec(image="fake", episode="e2")
    async with provider.open(SPEC) as a, provider.open(other) as b:
        await a.write("/f", b"changed")
        assert await a.read("/f") == b"changed"
        assert await b.read("/f") == b"given"


async def test_opened_and_closed_are_counted() -> None:
    provider = FakeProvider()
    async with provider.open(SPEC) as sandbox:
        async with provider.open(SandboxSpec(image="fake", episode="e2")):
            assert (provider.live, list(provider.sandboxes)) == (2, ["e1", "e2"])
        await sandbox.aclose()
        await sandbox.aclose()
    assert (provider.opened, provider.closed, provider.live, provider.most_live) == (2, 2, 0, 2)
    assert repr(provider) == "<FakeProvider opened=2 closed=2 live=0>"
    assert provider.sandboxes == {}


async def test_use_after_close_is_an_error() -> None:
    async with FakeProvider().open(SPEC) as sandbox:
        pass
    for call in (
        sandbox.run("x", timeout_s=1),
        sandbox.exec("x", timeout_s=1),
        sandbox.read("/x"),
        sandbox.write("/x", b""),
    ):
        with pytest.raises(SandboxError, match="closed"):
            await call


async def test_a_gate_holds_open_until_it_is_set() -> None:
    provider = FakeProvider()
    provider.open_gate = asyncio.Event()

    async def opened() -> None:
        async with provider.open(SPEC):
            pass

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        task = group.create_task(opened())
        await turns()
        assert (task.done(), provider.opened) == (False, 0)
        provider.open_gate.set()
    assert (provider.opened, provider.live) == (1, 0)


async def test_a_gate_holds_run_and_a_second_command_is_refused() -> None:
    provider = FakeProvider()
    provider.run_gate = asyncio.Event()
    async with asyncio.timeout(10), provider.open(SPEC) as sandbox, asyncio.TaskGroup() as group:
        task = group.create_task(sandbox.run("one", timeout_s=60))
        await turns()
        with pytest.raises(ContractError):
            await sandbox.run("two", timeout_s=60)
        assert not task.done()
        provider.run_gate.set()
    assert task.result().exit_code == 0


async def test_a_held_command_times_out_at_its_deadline() -> None:
    provider = FakeProvider()
    provider.run_gate = asyncio.Event()
    async with asyncio.timeout(10), provider.open(SPEC) as sandbox:
        result = await sandbox.run("one", timeout_s=0.01)
    assert (result.timed_out, result.exit_code) == (True, None)


async def test_a_command_longer_than_its_deadline_times_out() -> None:
    async with asyncio.timeout(10), FakeProvider(command_s=60).open(SPEC) as sandbox:
        assert (await sandbox.run("one", timeout_s=0.01)).timed_out
        assert (await sandbox.exec("one", timeout_s=0.01)).timed_out


async def test_a_cancelled_command_leaves_the_sandbox_usable() -> None:
    provider = FakeProvider()
    provider.run_gate = asyncio.Event()
    async with asyncio.timeout(10), provider.open(SPEC) as sandbox:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(sandbox.run("one", timeout_s=60))
            await turns()
            task.cancel()
        provider.run_gate.set()
        assert (await sandbox.run("two", timeout_s=60)).exit_code == 0


async def test_opens_fail_in_the_order_given_and_then_succeed() -> None:
    provider = FakeProvider()
    provider.open_errors += [SandboxError("first"), ProviderGone("second")]
    for error in ("first", "second"):
        with pytest.raises(SandboxError, match=error):
            async with provider.open(SPEC):
                pass
    async with provider.open(SPEC):
        pass
    assert (provider.opened, provider.closed) == (1, 1)


async def test_a_lost_sandbox_raises_and_the_others_go_on() -> None:
    provider = FakeProvider()
    other = SandboxSpec(image="fake", episode="e2")
    async with provider.open(SPEC) as a, provider.open(other) as b:
        a.lose("out of memory")
        with pytest.raises(SandboxError, match="out of memory"):
            await a.run("x", timeout_s=1)
        assert (await b.run("x", timeout_s=1)).exit_code == 0


async def test_a_provider_that_goes_ends_every_call_also_at_a_gate() -> None:
    provider = FakeProvider()
    provider.run_gate = asyncio.Event()

    async def held(sandbox: Sandbox) -> None:
        with pytest.raises(ProviderGone, match="unplugged"):
            await sandbox.run("x", timeout_s=60)

    async with asyncio.timeout(10), provider.open(SPEC) as sandbox:
        async with asyncio.TaskGroup() as group:
            group.create_task(held(sandbox))
            await turns()
            provider.go("unplugged")
        with pytest.raises(ProviderGone):
            await sandbox.read("/x")
        with pytest.raises(ProviderGone):
            await provider.prepare(EnvironmentRecipe())
        with pytest.raises(ProviderGone):
            async with provider.open(SPEC):
                pass
    assert provider.live == 0


async def test_prepare_is_written_down() -> None:
    provider = FakeProvider()
    recipe = EnvironmentRecipe(image="some/image:1")
    assert await provider.prepare(recipe) == "some/image:1"
    assert provider.prepared == [recipe]
    assert await provider.sweep() == []


async def test_five_thousand_are_open_at_once() -> None:
    provider = FakeProvider(record=False)
    everybody = asyncio.Event()

    async def episode(number: int) -> None:
        async with provider.open(SandboxSpec(image="fake", episode=str(number))) as sandbox:
            if provider.live == 5000:
                everybody.set()
            await everybody.wait()
            assert (await sandbox.run("x", timeout_s=1)).exit_code == 0

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        for number in range(5000):
            group.create_task(episode(number))
    assert (provider.most_live, provider.opened, provider.closed) == (5000, 5000, 5000)


async def test_a_terminal_answers_from_its_own_script() -> None:
    provider = FakeProvider(keys_script={"ls\n": b"ls\nf\n$ "})
    async with provider.open(SandboxSpec(image="fake", episode="e", terminal=True)) as sandbox:
        terminal = await sandbox.terminal()
        told = await terminal.type("ls\n", wait_s=1)
        assert (told.exit_code, told.stdout, told.screen) == (None, b"ls\nf\n$ ", b"ls\nf\n$ ")
    assert [call[1:3] for call in provider.calls] == [("type", "ls\n"), ("close", "")]


async def test_a_terminal_that_was_not_asked_for_is_refused() -> None:
    async with FakeProvider().open(SPEC) as sandbox:
        with pytest.raises(ContractError):
            await sandbox.terminal()


async def test_keys_that_take_longer_than_the_wait_time_out() -> None:
    provider = FakeProvider(command_s=60)
    async with provider.open(SandboxSpec(image="fake", episode="e", terminal=True)) as sandbox:
        told = await (await sandbox.terminal()).type("make\n", wait_s=0.01)
    assert told.timed_out
