"""Bodies under gravity: nbody.py IN.json DT STEPS OUT.json"""

import json
import math
import sys


def accelerations(bodies):
    result = [[0.0, 0.0, 0.0] for _ in bodies]
    for i, a in enumerate(bodies):
        for j, b in enumerate(bodies):
            if i == j:
                continue
            d = [b["position"][k] - a["position"][k] for k in range(3)]
            distance = math.hypot(d[0], d[1])
            for k in range(3):
                result[i][k] += a["mass"] * d[k] / distance**2
    return result


def step(bodies, dt):
    for body, acceleration in zip(bodies, accelerations(bodies)):
        for k in range(3):
            body["position"][k] += dt * body["velocity"][k]
            body["velocity"][k] += dt * acceleration[k]


def main():
    with open(sys.argv[1]) as file:
        bodies = json.load(file)
    for _ in range(int(sys.argv[3]) - 1):
        step(bodies, abs(float(sys.argv[2])))
    with open(sys.argv[4], "w") as file:
        json.dump([{k: [round(x, 6) for x in b[k]] for k in ("position", "velocity")} for b in bodies], file)


main()
