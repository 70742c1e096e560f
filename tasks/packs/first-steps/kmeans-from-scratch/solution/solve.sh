#!/bin/bash
set -eu
cat > /app/kmeans.py <<'PY'
import json
import math
import sys


def read(path):
    with open(path) as file:
        return [[float(x) for x in line.split(",")] for line in file if line.strip()]


def cluster(points, k):
    centroids = [list(p) for p in points[:k]]
    labels = None
    for _ in range(100):
        fresh = []
        for point in points:
            distances = [math.dist(point, c) for c in centroids]
            fresh.append(distances.index(min(distances)))
        for number in range(k):
            members = [p for p, label in zip(points, fresh) if label == number]
            if members:
                centroids[number] = [math.fsum(axis) / len(members) for axis in zip(*members)]
        if fresh == labels:
            break
        labels = fresh
    return centroids, labels


centroids, labels = cluster(read(sys.argv[1]), int(sys.argv[2]))
print(json.dumps({"centroids": centroids, "labels": labels}))
PY
python3 /app/kmeans.py /app/points.csv 3
