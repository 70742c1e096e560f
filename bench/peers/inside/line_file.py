"""Runs in verifiers' environment: its taskset and its harness for the task of `bench.peers`.

The harness is one program of the standard library that runs inside the container: one model call,
one command, and so on. verifiers' own harnesses fetch theirs from the package index for every
container, which nobody can do here. Nothing of headrace is imported.
"""

import verifiers.v1 as vf  # noqa: TID251 - the package of that name, not our folder

PROGRAM = """
import json, re, subprocess, sys, urllib.request
endpoint, secret, model, prompt = sys.argv[1:]
messages = [{"role": "user", "content": prompt}]
for _ in range(20):
    request = urllib.request.Request(
        endpoint.rstrip("/") + "/chat/completions",
        json.dumps({"model": model, "messages": messages}).encode(),
        {"Content-Type": "application/json", "Authorization": "Bearer " + secret},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        text = json.load(answer)["choices"][0]["message"]["content"]
    messages.append({"role": "assistant", "content": text})
    block = re.search("```bash\\n(.*?)\\n```", text, re.S)
    if block is None:
        break
    done = subprocess.run(["bash", "-c", block[1]], capture_output=True, text=True, timeout=30)
    messages.append({"role": "user", "content": done.stdout + done.stderr})
else:
    sys.exit("the model never said it was done")
"""


class LineTask(vf.Task[vf.TaskData]):
    """One line in a file."""

    @vf.reward(weight=1.0)
    async def written(self, trace: vf.Trace, runtime: vf.Runtime) -> float:
        found = await runtime.run(["bash", "-c", self.data.description or "false"], {})
        return float(found.exit_code == 0)


class LineConfig(vf.TasksetConfig):
    tasks: int = 16
    instruction: str = ""
    check: str = ""


class LineTaskset(vf.Taskset[LineTask, LineConfig]):
    """The same task under several names."""

    def load(self) -> list[LineTask]:
        return [
            LineTask(
                vf.TaskData(
                    name=f"line-{number:02}",
                    description=self.config.check,
                    prompt=self.config.instruction,
                ),
                self.config.task,
            )
            for number in range(self.config.tasks)
        ]


class LineHarness(vf.Harness[vf.HarnessConfig]):
    """The loop of an agent, inside."""

    async def launch(
        self,
        ctx: vf.ModelContext,
        trace: vf.Trace,
        runtime: vf.Runtime,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: vf.TaskData,
    ) -> vf.ProgramResult:
        _, prompt = self.resolve_text_prompt(data)
        line = ["python3", "-c", PROGRAM, endpoint, secret, ctx.model, prompt or ""]
        return await runtime.run_program(line, {})


__all__ = ["LineHarness", "LineTaskset"]
