"""Where the points of a plot lie: numbers for the templates. Pure.

It draws the one curve that needs a scale of its own; bars and boxes are percentages of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from headrace.engine.evaluate import Estimate

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 70, 616, 26, 246
MARGIN = 14
"""Between the frame and the first and last point."""


@dataclass(frozen=True, slots=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Point:
    x: float
    y: float
    text: str
    label: str
    anchor: str = "middle"


@dataclass(frozen=True, slots=True)
class Curve:
    """pass@k over k, in the units of its view box."""

    points: tuple[Point, ...]
    named: tuple[Point, ...]
    """The points that carry their value: the first and the last."""
    line: str
    band: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = RIGHT
    bottom: int = BOTTOM


def curve(estimates: Sequence[Estimate]) -> Curve | None:
    """The curve of pass@k; None for fewer than two values of k, which are no curve."""
    if len(estimates) < 2:
        return None
    first, last = estimates[0].k, estimates[-1].k
    step = (RIGHT - LEFT - 2 * MARGIN) / (last - first)

    def x(k: int) -> float:
        return round(LEFT + MARGIN + (k - first) * step, 1)

    points = tuple(
        Point(x=x(e.k), y=_y(e.value), text=_told(e), label=f"{100 * e.value:.1f} %")
        for e in estimates
    )
    low = [f"{x(e.k)},{_y(e.low)}" for e in reversed(estimates)]
    high = [f"{x(e.k)},{_y(e.high)}" for e in estimates]
    return Curve(
        points=points,
        named=(replace(points[0], anchor="start"), replace(points[-1], anchor="end")),
        line="M" + " L".join(f"{p.x},{p.y}" for p in points),
        band="M" + " L".join([*high, *low]) + " Z",
        x_ticks=tuple(Tick(at=x(k), text=str(k)) for k in _shown(first, last)),
        y_ticks=tuple(Tick(at=_y(n / 4), text=f"{25 * n} %") for n in range(5)),
    )


def _y(rate: float) -> float:
    return round(BOTTOM - rate * (BOTTOM - TOP), 1)


def _shown(first: int, last: int) -> list[int]:
    """At most ten values of k under the axis, the last among them."""
    every = -(-(last - first + 1) // 10)
    shown = list(range(first, last + 1, every))
    if shown[-1] != last:
        # A last tick too near its neighbour would run into it.
        shown = [*(k for k in shown if last - k >= every), last]
    return shown


def _told(e: Estimate) -> str:
    return (
        f"pass@{e.k}: {100 * e.value:.1f} % ({100 * e.low:.1f} to {100 * e.high:.1f}),"
        f" {e.tasks} tasks"
    )
