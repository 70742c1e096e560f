"""What the benchmarks of long runs make of their samples."""

import asyncio
import random
from contextlib import suppress
from pathlib import Path
from xml.dom import minidom

import pytest
from bench.soak import SURE, growth
from bench.soak_sample import Sample
from bench.utilisation import Busy, Utilisation, plot


def sample(at_s: float, rss_mb: float) -> Sample:
    return Sample(
        at_s=at_s,
        finished=0,
        live=0,
        lag_p99_s=0.0,
        rss_mb=rss_mb,
        helper_mb=0.0,
        files=0,
        threads=0,
        processes=0,
        sandboxes=0,
        leases=0,
        scratch=0,
    )


def test_a_leak_shows_through_noise_and_noise_is_no_leak() -> None:
    chance = random.Random(0)
    flat = [sample(5.0 * n, 100 + chance.gauss(0, 5)) for n in range(60)]
    leak = [sample(one.at_s, one.rss_mb + one.at_s / 10) for one in flat]
    level, rising = growth(flat, "rss_mb"), growth(leak, "rss_mb")
    assert level.gained - SURE * level.error < 3
    assert rising.gained - SURE * rising.error > 20
    assert rising.per_hour == pytest.approx(level.per_hour + 360)


def test_a_plot_has_every_phase_and_its_mean(tmp_path: Path) -> None:
    path = tmp_path / "use.svg"
    samples = [
        Busy(float(n), 0.25 if n < 10 else 1.0, "4 rollout" if n < 10 else "4 raw")
        for n in range(20)
    ] + [Busy(30.0, 0.5, "")]
    plot(samples, "Use of <it>", path)
    drawn = minidom.parse(str(path))
    words = [node.firstChild.nodeValue for node in drawn.getElementsByTagName("text")]
    assert words[0] == "Use of <it>"
    assert {"4 rollout", "4 raw", "mean 25 %", "mean 100 %"} <= set(words)
    assert [path.getAttribute("class") for path in drawn.getElementsByTagName("path")] == [
        "rollout",
        "raw",
    ]


async def test_the_processors_use_is_a_share_and_keeps_its_phase() -> None:
    used = Utilisation("cpu", every_s=0.05)
    used.phase = "a"
    with suppress(TimeoutError):
        async with asyncio.timeout(2):
            await used.watch()
    assert all(0 <= one.share <= 1 and one.phase == "a" for one in used.samples)
    assert used.mean("a") is not None
    assert used.mean("b") is None
