"""Clusters point sets of its own with Lloyd's rounds and compares with what kmeans.py prints."""

import json
import random

import grading


def nearest(point, centroids):
    squares = [sum((a - b) ** 2 for a, b in zip(point, c, strict=True)) for c in centroids]
    return squares.index(min(squares))


def lloyd(points, k, rounds=100):
    centroids, labels = [list(p) for p in points[:k]], []
    for _ in range(rounds):
        before, labels = labels, [nearest(p, centroids) for p in points]
        for j in range(k):
            own = [p for p, label in zip(points, labels, strict=True) if label == j]
            if own:
                centroids[j] = [sum(column) / len(own) for column in zip(*own, strict=True)]
        if labels == before:
            break
    return centroids, labels


def expect(points, k, name, blank_line=False):
    path = f"/tmp/{name}.csv"
    lines = [",".join(repr(x) for x in p) for p in points]
    with open(path, "w") as file:
        file.write("\n".join(lines) + "\n" + ("\n" if blank_line else ""))
    found = json.loads(grading.output(["python3", "/app/kmeans.py", path, str(k)]))
    centroids, labels = lloyd(points, k)
    assert found["labels"] == labels, f"{name}: labels differ"
    assert len(found["centroids"]) == k, f"{name}: {len(found['centroids'])} centroids"
    for got, want in zip(found["centroids"], centroids, strict=True):
        assert len(got) == len(want), f"{name}: a centroid of {len(got)} numbers"
        for a, b in zip(got, want, strict=True):
            assert abs(a - b) < 1e-6, f"{name}: centroid {got}, expected {want}"


def blobs(seed, count, columns, centres, spread):
    random_ = random.Random(seed)
    middles = [[random_.uniform(-10, 10) for _ in range(columns)] for _ in range(centres)]
    return [[round(random_.gauss(m, spread), 4) for m in random_.choice(middles)]
            for _ in range(count)]


def test_separate_blobs():
    expect(blobs(1, 120, 2, 4, 0.5), 4, "blobs")


def test_overlapping_blobs_need_many_rounds():
    points = blobs(2, 250, 2, 3, 6.0)
    assert lloyd(points, 6, rounds=3)[1] != lloyd(points, 6)[1]
    expect(points, 6, "overlap", blank_line=True)


def test_five_columns():
    expect(blobs(3, 400, 5, 8, 2.5), 8, "columns")


def test_one_column():
    expect([[float(x)] for x in (3, 1, 2, 50, 51, 49, -20)], 3, "line")


def test_a_tie_goes_to_the_lower_number():
    expect([[0.0, 0.0], [4.0, 0.0], [2.0, 3.0], [2.0, -3.0]], 2, "tie")


def test_a_centroid_without_points_stays():
    expect([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [9.0, 9.0], [8.0, 9.0]], 4, "twins")


def test_one_cluster_per_point():
    expect([[1.5, 2.0], [8.0, 8.0], [-3.0, 0.25]], 3, "single")


grading.main(globals(), needs="/app/kmeans.py", as_json=True)
