#!/bin/bash
set -eu
cat > /app/nbody.py <<'PY'
"""Bodies under gravity: nbody.py IN.json DT STEPS OUT.json"""

import json
import sys


def accelerations(positions, masses):
    result = [[0.0, 0.0, 0.0] for _ in masses]
    for i in range(len(masses)):
        for j in range(i):
            dx, dy, dz = (a - b for a, b in zip(positions[j], positions[i]))
            inverse = (dx * dx + dy * dy + dz * dz) ** -1.5
            for k, d in enumerate((dx, dy, dz)):
                result[i][k] += masses[j] * d * inverse
                result[j][k] -= masses[i] * d * inverse
    return result


def kick(velocities, pulls, time):
    for velocity, pull in zip(velocities, pulls):
        for k in range(3):
            velocity[k] += time * pull[k]


def main():
    with open(sys.argv[1]) as file:
        bodies = json.load(file)
    dt = float(sys.argv[2])
    masses = [body["mass"] for body in bodies]
    positions = [body["position"] for body in bodies]
    velocities = [body["velocity"] for body in bodies]
    pulls = accelerations(positions, masses)
    for _ in range(int(sys.argv[3])):
        kick(velocities, pulls, dt / 2)
        for position, velocity in zip(positions, velocities):
            for k in range(3):
                position[k] += dt * velocity[k]
        pulls = accelerations(positions, masses)
        kick(velocities, pulls, dt / 2)
    with open(sys.argv[4], "w") as file:
        json.dump(bodies, file)


main()
PY
python3 /app/nbody.py /app/binary.json 0.01 500 /tmp/after.json
