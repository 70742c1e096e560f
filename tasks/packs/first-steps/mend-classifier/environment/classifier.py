"""Logistic regression: classifier.py train DATA.csv MODEL.json | predict MODEL.json DATA.csv"""

import csv
import json
import math
import sys

ROUNDS = 40
RATE = 0.1


def read(path):
    with open(path) as file:
        rows = list(csv.reader(file))[1:]
    return [row[:-1] for row in rows], [row[-1] for row in rows]


def scale(features):
    """Columns with mean 0 and deviation 1."""
    columns = [[float(x) for x in column] for column in zip(*features)]
    scaled = []
    for column in columns:
        mean = sum(column) / len(column)
        deviation = math.sqrt(sum((x - mean) ** 2 for x in column) / len(column))
        scaled.append([(x - mean) / deviation for x in column])
    return [list(row) for row in zip(*scaled)]


def probability(weights, bias, row):
    z = bias + sum(w * x for w, x in zip(weights, row))
    return 1 / (1 + math.exp(-z))


def train(features, labels):
    rows = scale(features)
    targets = [1 if label == 1 else 0 for label in labels]
    weights, bias = [0.0] * len(rows[0]), 0.0
    for _ in range(ROUNDS):
        for row, target in zip(rows, targets):
            error = probability(weights, bias, row) - target
            for j, x in enumerate(row):
                weights[j] -= RATE * error * x
            bias -= error
    return {"weights": weights, "bias": bias}


def main():
    if sys.argv[1] == "train":
        features, labels = read(sys.argv[2])
        with open(sys.argv[3], "w") as file:
            json.dump(train(features, labels), file)
    else:
        with open(sys.argv[2]) as file:
            model = json.load(file)
        features, _ = read(sys.argv[3])
        for row in scale(features):
            print(probability(model["weights"], model["bias"], row))


main()
