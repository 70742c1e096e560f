"""Trains classifier.py on data of its own; the exact minimum is found here by coordinate search."""

import math
import os
import random

import grading

ORIGINAL = "f93004ba0d76133b4660ba005aeff73cd2475cbd42b139b44037b4080d9f7694"

PROGRAM = ["python3", "/app/classifier.py"]


def sigmoid(z):
    return 1 / (1 + math.exp(-z)) if z > -30 else math.exp(z)


def sample(seed, count, weights, bias):
    """Rows of independent standard normal features and labels drawn from the true model."""
    random_ = random.Random(seed)
    rows, labels = [], []
    for _ in range(count):
        row = [round(random_.gauss(0, 1), 4) for _ in weights]
        z = bias + sum(w * x for w, x in zip(weights, row, strict=True))
        rows.append(row)
        labels.append(int(random_.random() < sigmoid(z)))
    return rows, labels


def minimum(rows, labels):
    """Probabilities at the minimum of the loss, by steps in one coordinate at a time."""
    columns = [*zip(*rows, strict=True), [1.0] * len(rows)]
    z = [0.0] * len(rows)
    for _ in range(60):
        largest = 0.0
        for column in columns:
            slope = bend = 1e-12
            for x, at, label in zip(column, z, labels, strict=True):
                p = sigmoid(at)
                slope += (p - label) * x
                bend += p * (1 - p) * x * x
            step = max(-2.0, min(2.0, slope / bend))
            z = [at - step * x for at, x in zip(z, column, strict=True)]
            largest = max(largest, abs(step))
        if largest < 1e-7:
            break
    return [sigmoid(at) for at in z]


def write(name, rows, labels):
    path = f"/tmp/{name}.csv"
    with open(path, "w") as file:
        file.write(",".join([f"f{i}" for i in range(len(rows[0]))] + ["label"]) + "\n")
        for row, label in zip(rows, labels, strict=True):
            file.write(",".join([repr(x) for x in row] + [str(label)]) + "\n")
    return path


def train(name, rows, labels):
    model = f"/tmp/{name}.json"
    if os.path.exists(model):
        os.remove(model)
    grading.output([*PROGRAM, "train", write(name, rows, labels), model])
    return model


def predict(model, rows, label=""):
    path = write("asked", rows, [label] * len(rows))
    found = [float(x) for x in grading.output([*PROGRAM, "predict", model, path]).split()]
    assert len(found) == len(rows), f"{len(found)} predictions for {len(rows)} rows"
    assert all(0 <= p <= 1 for p in found), "a probability outside [0, 1]"
    return found


def close(got, want, within):
    worst = max(abs(a - b) for a, b in zip(got, want, strict=True))
    assert worst <= within, f"probabilities are off by up to {worst:.4f}"


def test_training_reaches_the_minimum():
    rows, labels = sample(1, 200, [1.5, -2.0, 0.5], -0.4)
    model = train("plain", rows, labels)
    close(predict(model, rows), minimum(rows, labels), 0.005)


def test_few_ones_are_calibrated():
    rows, labels = sample(2, 400, [0.8, 0.3], -2.5)
    found = predict(train("rare", rows, labels), rows)
    assert abs(sum(found) / len(found) - sum(labels) / len(labels)) < 0.003
    close(found, minimum(rows, labels), 0.005)


def test_dependent_columns_converge_too():
    base, labels = sample(3, 200, [1.0, 1.0], 0.3)
    rows = [[a, round(0.8 * a + 0.6 * b, 4)] for a, b in base]
    close(predict(train("dependent", rows, labels), rows), minimum(rows, labels), 0.005)


def test_a_prediction_depends_on_its_row_only():
    rows, labels = sample(4, 120, [1.0, -1.0], 0.2)
    model = train("alone", rows, labels)
    together = predict(model, rows)
    close(predict(model, rows[::-1])[::-1], together, 1e-9)
    for index in (0, 50, 119):
        close(predict(model, [rows[index]], label="?"), [together[index]], 1e-9)


def test_units_do_not_matter():
    rows, labels = sample(5, 150, [1.2, -0.7, 0.4], 0.0)
    plain = predict(train("units", rows, labels), rows)
    other = [[x * 1000 + 5, y / 1000 - 70, z + 40000] for x, y, z in rows]
    close(predict(train("others", other, labels), other), plain, 0.001)


def test_a_constant_column_has_no_influence():
    rows, labels = sample(6, 150, [1.0, -0.5], 0.1)
    flat = [[x, 0.1, y] for x, y in rows]
    model = train("flat", flat, labels)
    found = predict(model, flat)
    close(found, minimum(rows, labels), 0.005)
    close(predict(model, [[x, 77.0, y] for x, y in rows]), found, 1e-6)


def test_huge_values_are_answered():
    rows, labels = sample(7, 120, [2.0, -1.0], 0.0)
    model = train("huge", rows, labels)
    low, high = predict(model, [[-1e9, 1e9], [1e9, -1e9]])
    assert low < 0.001 and high > 0.999, (low, high)


def test_400_rows_with_6_features_in_time_and_the_same_twice():
    rows, labels = sample(8, 400, [0.5, -0.5, 1.0, 0.2, -0.1, 0.8], 0.5)
    with open(train("first", rows, labels), "rb") as file:
        first = file.read()
    with open(train("first", rows, labels), "rb") as file:
        assert file.read() == first, "two trainings differ"


grading.main(globals(), needs="/app/classifier.py", original=ORIGINAL)
