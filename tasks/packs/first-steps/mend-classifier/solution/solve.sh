#!/bin/bash
# Scaling becomes part of the model, the sigmoid never overflows, and Newton's method converges.
set -eu
cat > /app/classifier.py <<'PY'
"""Logistic regression: classifier.py train DATA.csv MODEL.json | predict MODEL.json DATA.csv"""

import csv
import json
import math
import sys


def read(path):
    with open(path) as file:
        rows = [row for row in csv.reader(file) if row][1:]
    return [[float(x) for x in row[:-1]] for row in rows], [row[-1] for row in rows]


def measure(features):
    scales = []
    for column in zip(*features):
        mean = math.fsum(column) / len(column)
        deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in column) / len(column))
        constant = max(column) == min(column)
        scales.append([column[0] if constant else mean, 0.0 if constant else 1 / deviation])
    return scales


def scaled(row, scales):
    return [(x - mean) * factor for x, (mean, factor) in zip(row, scales)]


def probability(weights, row):
    z = weights[-1] + sum(w * x for w, x in zip(weights, row))
    if z >= 0:
        return 1 / (1 + math.exp(-min(z, 700)))
    small = math.exp(max(z, -700))
    return small / (1 + small)


def solve(matrix, right):
    rows = [row + [value] for row, value in zip(matrix, right)]
    n = len(rows)
    for i in range(n):
        pivot = max(range(i, n), key=lambda r: abs(rows[r][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for r in range(n):
            if r != i:
                factor = rows[r][i] / rows[i][i]
                rows[r] = [a - factor * b for a, b in zip(rows[r], rows[i])]
    return [rows[i][n] / rows[i][i] for i in range(n)]


def train(features, labels):
    scales = measure(features)
    rows = [scaled(row, scales) + [1.0] for row in features]
    targets = [int(float(label)) for label in labels]
    size = len(scales) + 1
    weights = [0.0] * size
    for _ in range(50):
        gradient = [0.0] * size
        hessian = [[0.0] * size for _ in range(size)]
        for row, target in zip(rows, targets):
            p = probability(weights, row[:-1])
            for i in range(size):
                gradient[i] += (p - target) * row[i]
                for j in range(i + 1):
                    hessian[i][j] += p * (1 - p) * row[i] * row[j]
        for i in range(size):
            hessian[i][i] += 1e-9
            for j in range(i):
                hessian[j][i] = hessian[i][j]
        step = solve(hessian, gradient)
        shrink = min(1.0, 5 / (max(map(abs, step)) + 1e-300))
        weights = [w - shrink * s for w, s in zip(weights, step)]
        if max(map(abs, step)) < 1e-10:
            break
    return {"weights": weights, "scales": scales}


def main():
    if sys.argv[1] == "train":
        features, labels = read(sys.argv[2])
        with open(sys.argv[3], "w") as file:
            json.dump(train(features, labels), file)
    else:
        with open(sys.argv[2]) as file:
            model = json.load(file)
        for row in read(sys.argv[3])[0]:
            print(repr(probability(model["weights"], scaled(row, model["scales"]))))


main()
PY
cd /tmp
python3 /app/classifier.py train /app/train.csv model.json
python3 /app/classifier.py predict model.json /app/train.csv | head -n 3
