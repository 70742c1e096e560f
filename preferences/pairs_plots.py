"""Where the bars and points of a pairs report lie: numbers for the templates. Pure.

Rule: whatever is counted can be seen: one pair among a hundred thousand is still a line.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from headrace.engine.evaluation_page import number
from headrace.engine.plots import Tick
from headrace.preferences.histogram import Histogram, multiples, step

WIDTH, LEFT, RIGHT, TOP = 460, 58, 448, 22
BARS_HEIGHT, BARS_BOTTOM = 236, 190
CLOUD_HEIGHT, CLOUD_BOTTOM = 460, 412
LEAST_BAR = 1.5
LABELS = 7
"""At most so many under an axis."""
LOG_FROM = 20
"""Ratio of the largest to the smallest number from which on an axis is logarithmic."""
KINDS = ("pass", "fail")
"""Colours of the first and the second list of a histogram."""


@dataclass(frozen=True, slots=True)
class Bar:
    kind: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Slot:
    """One bin: its place, what it says, and its bars."""

    x: float
    width: float
    text: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True, slots=True)
class Bars:
    """A histogram, in the units of its view box."""

    slots: tuple[Slot, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    names: tuple[str, ...]
    width: int = WIDTH
    height: int = BARS_HEIGHT
    left: int = LEFT
    right: int = RIGHT
    bottom: int = BARS_BOTTOM


@dataclass(frozen=True, slots=True)
class Cloud:
    """Points of two numbers on one scale, with the diagonal."""

    points: tuple[tuple[float, float], ...]
    ticks: tuple[tuple[float, float, str], ...]
    """x, y and text of a number on both axes."""
    logarithmic: bool
    width: int = WIDTH
    height: int = CLOUD_HEIGHT
    left: int = LEFT
    right: int = RIGHT
    top: int = TOP
    bottom: int = CLOUD_BOTTOM


def bars(found: Histogram) -> Bars | None:
    """The bars of a histogram; None without any number."""
    if not found.edges:
        return None
    names = tuple(found.counts)
    tallest = max(max(counts) for counts in found.counts.values())
    slot = (RIGHT - LEFT) / (len(found.edges) - 1)
    heights = (BARS_BOTTOM - TOP) / tallest
    slots = []
    for i in range(len(found.edges) - 1):
        x = LEFT + i * slot
        counts = [found.counts[name][i] for name in names]
        told = ", ".join(f"{name} {number(n)}" for name, n in zip(names, counts, strict=True))
        slots.append(
            Slot(
                x=round(x, 2),
                width=round(slot, 2),
                text=f"{_range(found, i)}: {told}",
                bars=tuple(_bars(x, slot, [n * heights for n in counts])),
            )
        )
    return Bars(
        slots=tuple(slots),
        x_ticks=tuple(_under(found, slot)),
        y_ticks=tuple(_beside(tallest)),
        names=names,
    )


def cloud(points: Sequence[tuple[float, float]]) -> Cloud | None:
    """First of a pair upwards, second to the right; None without points."""
    if not points:
        return None
    every = [n for point in points for n in point]
    low, high = min(every), max(every)
    logarithmic = low > 0 and high / low >= LOG_FROM
    if not logarithmic and low < high / 2:
        low = 0
    if low == high:
        low, high = low * 0.9, high * 1.1 or 1.0
    scale = math.log if logarithmic else float
    first, reach = scale(low), scale(high) - scale(low)

    def share(value: float) -> float:
        return (scale(value) - first) / reach

    def x(value: float) -> float:
        return round(LEFT + 8 + share(value) * (RIGHT - LEFT - 16), 1)

    def y(value: float) -> float:
        return round(CLOUD_BOTTOM - 8 - share(value) * (CLOUD_BOTTOM - TOP - 16), 1)

    shown = _decades(low, high) if logarithmic else _steps(low, high, 5)
    return Cloud(
        points=tuple((x(second), y(one)) for one, second in points),
        ticks=tuple((x(value), y(value), short(value)) for value in shown),
        logarithmic=logarithmic,
    )


def short(value: float) -> str:
    """A number for an axis: 1,500 is 1.5k."""
    for unit, name in ((1_000_000, "M"), (1_000, "k")):
        if value >= unit:
            return f"{value / unit:.4g}{name}"
    return f"{value:.4g}"


def _bars(x: float, slot: float, heights: Sequence[float]) -> list[Bar]:
    gap = min(2.0, slot * 0.12)
    width = min((slot - 2 * gap) / len(heights), 46.0)
    start = x + (slot - width * len(heights)) / 2
    return [
        Bar(
            kind=KINDS[i],
            x=round(start + i * width, 2),
            y=round(BARS_BOTTOM - max(height, LEAST_BAR), 2),
            width=round(width * (0.92 if len(heights) > 1 else 1), 2),
            height=round(max(height, LEAST_BAR), 2),
        )
        for i, height in enumerate(heights)
        if height
    ]


def _range(found: Histogram, i: int) -> str:
    low, high = found.edges[i], found.edges[i + 1]
    last = i == len(found.edges) - 2
    if last and found.beyond:
        return f"{number(low)} to {number(high)}"
    if not found.whole:
        return f"{number(low)} to {'' if last else 'below '}{number(high)}"
    return number(low) if high - low <= 1 else f"{number(low)} to {number(high - 1)}"


def _under(found: Histogram, slot: float) -> list[Tick]:
    """Labels of bins: in the middle where a bin is one number, else at its lower edge."""
    bins = len(found.edges) - 1
    single = found.whole and bins and found.edges[1] - found.edges[0] <= 1
    regular = bins - found.beyond + (not single)
    every = next(n for n in (1, 2, 4, 5, 10, regular) if regular <= n * LABELS)
    ticks = [
        Tick(at=round(LEFT + slot * (i + (0.5 if single else 0)), 1), text=short(found.edges[i]))
        for i in range(0, regular, every)
    ]
    if not found.beyond:
        return ticks
    # The last bin is no further step of the scale: it has a label of its own.
    far = Tick(at=round(LEFT + slot * (bins - 0.5), 1), text=f"≥ {short(found.edges[-2])}")
    return [*(tick for tick in ticks if far.at - tick.at > 48), far]


def _beside(tallest: int) -> list[Tick]:
    heights = (BARS_BOTTOM - TOP) / tallest
    width = max(1, round(step(tallest, 4)))
    return [
        Tick(at=round(BARS_BOTTOM - n * heights, 1), text=short(n))
        for n in range(0, tallest + 1, width)
    ]


def _steps(low: float, high: float, most: int) -> list[float]:
    width = step(high - low, most)
    first = math.ceil(low / width - 1e-9)
    return list(multiples(width, first, math.floor(high / width + 1e-9) - first + 1))


def _decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten between; without the 2 and 5 where those are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    of = (1, 2, 5) if len(powers) <= 4 else (1,)
    return [n * 10.0**p for p in powers for n in of if low <= n * 10.0**p <= high]
