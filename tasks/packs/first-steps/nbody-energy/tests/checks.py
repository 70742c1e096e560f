"""Runs nbody.py on systems of its own: conservation laws, known orbits, and a leapfrog of its own."""

import json
import math
import os

import grading

ORIGINAL = "2d68c19723af4ae1a9cece1e13d41ccd11622dcd5e0a07952956db149a85cb50"


def body(mass, position, velocity):
    return {"mass": mass, "position": list(position), "velocity": list(velocity)}


def triple():
    """A tight pair and a third body around it, in no common plane."""
    return [
        body(1.0, (0.4, 0.1, 0.05), (-0.2, 0.75, 0.3)),
        body(0.8, (-0.5, 0.0, -0.1), (0.1, -0.8, -0.2)),
        body(0.3, (3.0, 1.0, 2.0), (-0.3, 0.45, -0.1)),
    ]


def simulate(bodies, dt, steps):
    before, after = "/tmp/before.json", "/tmp/after.json"
    with open(before, "w") as file:
        json.dump(bodies, file)
    if os.path.exists(after):
        os.remove(after)
    grading.output(["python3", "/app/nbody.py", before, repr(dt), str(steps), after])
    with open(after) as file:
        found = json.load(file)
    assert [b["mass"] for b in found] == [b["mass"] for b in bodies], "masses or order changed"
    return found


def pull(bodies, at, own):
    total = [0.0, 0.0, 0.0]
    for index, other in enumerate(bodies):
        if index != own:
            offset = [q - p for p, q in zip(at, other["position"], strict=True)]
            r = math.sqrt(sum(x * x for x in offset))
            total = [t + other["mass"] * x / r**3 for t, x in zip(total, offset, strict=True)]
    return total


def leapfrog(bodies, dt, steps):
    bodies = [body(b["mass"], b["position"], b["velocity"]) for b in bodies]
    for _ in range(steps):
        for half in (0, 1):
            pulls = [pull(bodies, b["position"], i) for i, b in enumerate(bodies)]
            for b, a in zip(bodies, pulls, strict=True):
                b["velocity"] = [v + dt / 2 * x for v, x in zip(b["velocity"], a, strict=True)]
            if half == 0:
                for b in bodies:
                    moved = zip(b["position"], b["velocity"], strict=True)
                    b["position"] = [p + dt * v for p, v in moved]
    return bodies


def energy(bodies):
    total = sum(b["mass"] * sum(v * v for v in b["velocity"]) / 2 for b in bodies)
    for i, a in enumerate(bodies):
        for b in bodies[:i]:
            total -= a["mass"] * b["mass"] / math.dist(a["position"], b["position"])
    return total


def close(got, want, within):
    for a, b in zip(got, want, strict=True):
        for key in ("position", "velocity"):
            assert math.dist(a[key], b[key]) <= within, f"{key} {a[key]}, expected {b[key]}"


def test_a_few_steps_are_leapfrog_steps():
    for steps in (1, 2, 25):
        close(simulate(triple(), 0.02, steps), leapfrog(triple(), 0.02, steps), 1e-10)


def test_no_step_changes_nothing():
    close(simulate(triple(), 0.5, 0), triple(), 0.0)


def test_energy_is_conserved_over_many_orbits():
    start = triple()
    change = energy(simulate(start, 0.005, 2000)) / energy(start) - 1
    assert abs(change) < 1e-3, f"energy changed by {change:.2e}"


def test_momentum_is_conserved():
    start = triple()
    end = simulate(start, 0.01, 300)
    for k in range(3):
        before, after = (sum(b["mass"] * b["velocity"][k] for b in s) for s in (start, end))
        assert abs(before - after) < 1e-11, f"momentum {before} became {after}"


def test_a_tilted_circular_orbit_closes():
    # A test particle around mass 4 at radius 1: speed 2, period pi.
    tilt = math.sqrt(0.5)
    start = [body(4.0, (0, 0, 0), (0, 0, 0)), body(0.0, (1, 0, 0), (0, 2 * tilt, 2 * tilt))]
    close(simulate(start, math.pi / 1000, 1000), start, 1e-3)


def test_a_negative_step_leads_back():
    start = triple()
    close(simulate(simulate(start, 0.01, 400), -0.01, 400), start, 1e-9)


def test_a_lone_body_goes_straight_on():
    close(
        simulate([body(2.0, (1, 2, 3), (0.5, -1, 0.25))], 0.25, 8),
        [body(2.0, (2, 0, 3.5), (0.5, -1, 0.25))],
        1e-12,
    )


grading.main(globals(), needs="/app/nbody.py", original=ORIGINAL, as_json=True)
