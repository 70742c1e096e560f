"""How many episodes per second do Harbor, mini-swe-agent, verifiers and headrace reach?

The same sixteen tasks (write one line to a file), the same image, the same six commands from one
fake model server that answers at once; each peer in an environment of its own
(`scripts/install-peers.sh`), at the concurrency it is fastest at here. The systems run in turn,
round by round; every episode of every round has to pass. Floors: what the Docker engine, the
kernel's namespaces and an asyncio loop do with nothing of anybody's on top.

    python -m bench.peers.run [--rounds 3] [--systems NAME,...] [--quick] [--json FILE]
    python -m bench.peers.run --sweep       # finds the concurrencies, as --at takes them
"""

import argparse
import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.peers.model import calls, serving
from bench.peers.programs import Outcome
from bench.peers.systems import PLACES, SYSTEMS, Bench, System, emptied
from bench.peers.table import markdown, metrics
from bench.peers.tasks import prepare
from bench.report import report

from headrace.errors import HeadraceError
from headrace.policies.weights import SMALL_MODEL, ready_model


def chosen(names: str) -> list[System]:
    """The systems named, in the order of the table; all of them where nothing is named."""
    known = [system.name for system in SYSTEMS]
    wanted = [name for name in names.split(",") if name] or known
    if unknown := [name for name in wanted if name not in known]:
        raise SystemExit(f"--systems: no {', '.join(unknown)}; expected some of {', '.join(known)}")
    return [system for system in SYSTEMS if system.name in wanted]


def lacking(systems: Sequence[System]) -> list[str]:
    """What is not installed, in words."""
    needed = {name for system in systems for name in PLACES if system.name.startswith(name)}
    missing = [name for name in sorted(needed) if not PLACES[name].exists()]
    return [f"{name} is not in {PLACES[name].parent}: scripts/install-peers.sh" for name in missing]


def once(system: System, bench: Bench, episodes: int, concurrency: int) -> Outcome:
    """One round of one system. Ends the bench when an episode did not pass or skipped a call."""
    emptied(bench.work)
    asked = calls(bench.model)
    outcome = system.run(bench, episodes, concurrency)
    asked = calls(bench.model) - asked
    load = os.getloadavg()[0]
    print(
        f"{system.name:<28} {concurrency:>3} at once  {outcome.episodes:>5} episodes"
        f"  {outcome.seconds:6.1f} s  {outcome.eps_s:8.2f}/s  load {load:.1f}",
        flush=True,
    )
    if outcome.episodes < episodes or outcome.passed < outcome.episodes:
        log = bench.work / "program.log"
        tail = log.read_text(errors="replace")[-1500:] if log.exists() else ""
        raise SystemExit(
            f"{tail}\n{system.name}: expected {episodes} episodes that pass, found"
            f" {outcome.episodes} of which {outcome.passed} pass: no figure"
        )
    if asked != outcome.episodes * system.calls:
        raise SystemExit(
            f"{system.name}: expected {system.calls} model calls for each of {outcome.episodes}"
            f" episodes, found {asked} in all: no figure"
        )
    return outcome


def in_turn(
    systems: Sequence[System], bench: Bench, *, rounds: int, quick: bool
) -> dict[str, list[Outcome]]:
    """Every system once a round, from another one on each time."""
    outcomes: dict[str, list[Outcome]] = {system.name: [] for system in systems}
    for number in range(rounds):
        first = number * len(systems) // rounds
        for system in (*systems[first:], *systems[:first]):
            episodes = system.quick if quick else system.episodes
            outcomes[system.name].append(once(system, bench, episodes, system.best))
    return outcomes


def sweep(systems: Sequence[System], bench: Bench) -> dict[str, int]:
    """Each system at each of its levels, shorter than a round; where each was fastest."""
    fastest = {}
    for system in systems:
        rates = {
            level: once(system, bench, max(system.episodes // 3, level), level).eps_s
            for level in system.levels
        }
        fastest[system.name] = max(rates, key=lambda level: rates[level])
    return fastest


def at(systems: Sequence[System], told: str) -> list[System]:
    """The systems with the concurrencies of `NAME=N,...` in place of their own."""
    wanted = dict(pair.partition("=")[::2] for pair in told.split(",") if pair)
    known = {system.name for system in SYSTEMS}
    if wrong := [f"{k}={v}" for k, v in wanted.items() if k not in known or not v.isdecimal()]:
        raise SystemExit(f"--at: expected NAME=NUMBER,..., found {', '.join(wrong)}")
    return [
        replace(system, best=int(wanted[system.name])) if system.name in wanted else system
        for system in systems
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--systems", default="", help="names with commas; all by default")
    parser.add_argument("--at", default="", help="NAME=N,...: other concurrencies than ours")
    parser.add_argument("--quick", action="store_true", help="one short round, no figures")
    parser.add_argument("--sweep", action="store_true", help="find the best concurrency of each")
    parser.add_argument("--json", type=Path, help="write {bench, commit, machine, metrics} here")
    arguments = parser.parse_args()
    systems = at(chosen(arguments.systems), arguments.at)
    if missing := lacking(systems):
        raise SystemExit("bench.peers: " + "\n".join(missing))
    tokenizer = asyncio.run(ready_model(SMALL_MODEL))
    spaces = ["namespace"] if any("namespace" in system.name for system in systems) else []
    with (
        tempfile.TemporaryDirectory(prefix="headrace-peers-") as folder,
        serving(tokenizer) as model,
    ):
        ready = asyncio.run(prepare(Path(folder), spaces))
        bench = Bench(ready=ready, model=model, work=Path(folder) / "work")
        if arguments.sweep:
            fastest = sweep(systems, bench)
            print("--at " + ",".join(f"{name}={level}" for name, level in fastest.items()))
            return
        rounds = 1 if arguments.quick else arguments.rounds
        outcomes = in_turn(systems, bench, rounds=rounds, quick=arguments.quick)
    found = metrics(systems, outcomes)
    report("peers.run", found, arguments.json)
    print(f"\n{markdown(found)}")
    if arguments.quick:
        print("\n--quick: rounds this short say nothing about speed", file=sys.stderr)


if __name__ == "__main__":
    for name in (signal.SIGTERM, signal.SIGHUP):  # the programs are in sessions of their own
        if signal.getsignal(name) is not signal.SIG_IGN:
            signal.signal(name, signal.default_int_handler)
    try:
        main()
    except HeadraceError as e:
        sys.exit(f"bench.peers: {e}")
    except KeyboardInterrupt:
        sys.exit(130)
