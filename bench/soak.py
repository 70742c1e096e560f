"""Does a run at full load hold what it holds: memory, open files, threads, sandboxes?

A real run in a process of its own, by the command that users give: sandboxes, verifiers, store and
its fsyncs, with a scripted policy and a plan that does not end. It is looked at from outside every
few seconds, is stopped by Ctrl-C, and must leave nothing: no lease, control group, container,
process or temporary file. The first part of the samples is left out as the warming up. What a
straight line through the rest gains until the end is the growth; more than a noise is a failure.

    python -m bench.soak --minutes 30 [--provider namespace|docker] [--live 48] [--json FILE]
"""

import argparse
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean, linear_regression
from typing import NamedTuple

import msgspec
from bench.episodes import COMMANDS
from bench.report import report
from bench.soak_sample import Look, Sample

from headrace.engine.summary import SUMMARY_FILE, Summary

LIVE = {"namespace": 48, "docker": 16}
STARTS = {"namespace": 16, "docker": 8}
MOST_EPISODES_S = {"namespace": 150, "docker": 25}
"""More than this machine does: the plan must not end before the time does."""
TASKS = 20
EVERY_S = 5.0
WARMING_UP = 0.3
"""Of the samples."""
FIRST_EPISODE_S = 600.0
"""For images to be built and the first episodes to end."""
STOP_S = 240.0
"""For what is under way to end, and for the summary."""
NOISE = {"rss_mb": (0.03, 4.0), "helper_mb": (0.03, 2.0)}
"""Growth that is none: a share of the mean, and so much more."""
COUNTS = (0.05, 3.0)
"""The same for files, threads and sandboxes."""
SURE = 2.0
"""Standard errors that are taken off a growth before it is called one."""
MEASURES = ("rss_mb", "helper_mb", "files", "threads", "sandboxes", "leases", "scratch")

HEADRACE = "from headrace.cli import main; main()"
CONFIG = """\
attempts = {attempts}
[tasks]
source = "first-steps"
[policy]
type = "scripted"
commands = [{commands}]
[sandbox]
provider = "{provider}"
[engine]
live = {live}
preparing = {starts}
verifying = {starts}
"""


class Soak:
    """One run, from its start to what it leaves."""

    def __init__(self, provider: str, minutes: float, live: int, folder: Path) -> None:
        self._provider = provider
        self._seconds = 60 * minutes
        self._folder = folder
        self._run = folder / f"soak-{os.getpid()}"  # names the control groups
        self._scratch = folder / "scratch"
        self._scratch.mkdir()
        self._log = folder / "log"
        episodes = MOST_EPISODES_S[provider] * (self._seconds + 60)
        folder.joinpath("soak.toml").write_text(
            CONFIG.format(
                attempts=math.ceil(episodes / TASKS),
                commands=", ".join(f"'''{command}'''" for command in COMMANDS),
                provider=provider,
                live=live,
                starts=STARTS[provider],
            )
        )

    def measure(self) -> tuple[list[Sample], Sample, Summary]:
        """Samples at full load, what is there after the end, and what the run says of itself."""
        line = [sys.executable, "-c", HEADRACE, "run", str(self._folder / "soak.toml")]
        with self._log.open("wb") as log:
            process = subprocess.Popen(
                [*line, "--out", str(self._run)],
                env={**os.environ, "TMPDIR": str(self._scratch)},
                stdout=log,
                stderr=log,
            )
            try:
                look = Look(process.pid, self._provider, self._run, self._scratch)
                samples = self._watch(process, look)
                process.send_signal(signal.SIGINT)
                self._ended(process)
            finally:
                process.kill()
                process.wait()
        return samples, look.take(), self._summary()

    def _watch(self, process: "subprocess.Popen[bytes]", look: Look) -> list[Sample]:
        samples: list[Sample] = []
        begun: float | None = None
        deadline = time.monotonic() + FIRST_EPISODE_S
        while begun is None or time.monotonic() < begun + self._seconds:
            time.sleep(EVERY_S if begun else 0.5)
            if process.poll() is not None:
                raise SystemExit(
                    f"the run ended by itself with {process.returncode}: {self.log_end()}"
                )
            sample = look.take()
            if begun is None and sample.finished:
                begun = time.monotonic()
            if begun is None and time.monotonic() > deadline:
                raise SystemExit(f"no episode within {FIRST_EPISODE_S:.0f} s: {self.log_end()}")
            if begun is not None:
                samples.append(sample)
                print(sample.line(), file=sys.stderr)
        return samples

    def _ended(self, process: "subprocess.Popen[bytes]") -> None:
        deadline = time.monotonic() + STOP_S
        while process.poll() is None:
            if time.monotonic() > deadline:
                raise SystemExit(f"the run did not end within {STOP_S:.0f} s: {self.log_end()}")
            time.sleep(0.2)

    def _summary(self) -> Summary:
        try:
            data = (self._run / SUMMARY_FILE).read_bytes()
        except OSError:
            raise SystemExit(f"the run left no summary: {self.log_end()}") from None
        return msgspec.json.decode(data, type=Summary)

    def log_end(self) -> str:
        """Of the run's log."""
        return self._log.read_text(errors="replace")[-800:]


class Growth(NamedTuple):
    """A straight line through the values of one measure."""

    mean: float
    per_hour: float
    gained: float
    """What the line gains between the first and the last sample."""
    error: float
    """Standard error of `gained`: sandboxes come and go all the time."""


def growth(samples: list[Sample], measure: str) -> Growth:
    times = [sample.at_s for sample in samples]
    values = [float(getattr(sample, measure)) for sample in samples]
    slope, base = linear_regression(times, values)
    off = sum((y - base - slope * x) ** 2 for x, y in zip(times, values, strict=True))
    middle = fmean(times)
    spread = sum((x - middle) ** 2 for x in times)
    long_s = times[-1] - times[0]
    error = math.sqrt(off / (len(times) - 2) / spread)
    return Growth(fmean(values), 3600 * slope, slope * long_s, error * long_s)


def judged(
    samples: list[Sample], after: Sample, summary: Summary
) -> tuple[dict[str, float | None], list[str]]:
    """The metrics, and what is wrong."""
    steady = samples[int(WARMING_UP * len(samples)) :]
    if len(steady) < 4:
        raise SystemExit("expected at least 4 samples after the warming up: give it more minutes")
    first, last = steady[0], steady[-1]
    metrics: dict[str, float | None] = {
        "minutes": (last.at_s - samples[0].at_s) / 60,
        "episodes": last.finished,
        "eps_s": (last.finished - first.finished) / (last.at_s - first.at_s),
        "lag_p99_ms": 1000 * max(sample.lag_p99_s for sample in steady),
    }
    wrong = []
    for trouble in ("infra_failures", "retries"):
        number = getattr(summary, trouble)
        metrics[trouble] = number
        if number:
            wrong.append(f"{trouble}: expected none, found {number}")
    if not all(sample.live for sample in steady):
        wrong.append("there were times without a live episode: do sandboxes fail to start?")
    for measure in MEASURES:
        line = growth(steady, measure)
        metrics |= {f"{measure}_mean": line.mean, f"{measure}_per_hour": line.per_hour}
        share, more = NOISE.get(measure, COUNTS)
        if line.gained - SURE * line.error > share * line.mean + more:
            wrong.append(f"{measure} grew by {line.gained:.1f}; its mean is {line.mean:.1f}")
    for left in ("sandboxes", "leases", "scratch", "processes"):
        number = getattr(after, left)
        metrics[f"{left}_left"] = number
        if number:
            wrong.append(f"{left}: expected none after the end, found {number}")
    return metrics, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--provider", choices=("namespace", "docker"), default="namespace")
    parser.add_argument("--live", type=int, help="live episodes; left out: enough for full load")
    parser.add_argument("--json", type=Path, help="write {bench, commit, machine, metrics} here")
    arguments = parser.parse_args()
    provider = arguments.provider
    with tempfile.TemporaryDirectory(prefix="headrace-soak-") as folder:
        soak = Soak(provider, arguments.minutes, arguments.live or LIVE[provider], Path(folder))
        metrics, wrong = judged(*soak.measure())
        if wrong:
            print(soak.log_end(), file=sys.stderr)
    report("soak", metrics, arguments.json)
    if wrong:
        raise SystemExit("\n".join(["", "not held:", *wrong]))


if __name__ == "__main__":
    main()
