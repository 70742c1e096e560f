#!/bin/bash
# The normal equations, solved in exact fractions.
set -eu
cat > /app/fit.py <<'PY'
import sys
from fractions import Fraction


def solve(matrix, right):
    n = len(right)
    rows = [row + [value] for row, value in zip(matrix, right)]
    for i in range(n):
        pivot = next(r for r in range(i, n) if rows[r][i])
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [value / rows[i][i] for value in rows[i]]
        for r in range(n):
            if r != i and rows[r][i]:
                factor = rows[r][i]
                rows[r] = [a - factor * b for a, b in zip(rows[r], rows[i])]
    return [row[n] for row in rows]


degree = int(sys.argv[1])
points = []
for line in sys.stdin:
    if line.strip() and not line.startswith("#"):
        x, y = line.split()
        points.append((Fraction(x), Fraction(y)))
if len({x for x, _ in points}) <= degree:
    print("singular")
    sys.exit(3)
powers = [sum(x**k for x, _ in points) for k in range(2 * degree + 1)]
moments = [sum(y * x**k for x, y in points) for k in range(degree + 1)]
matrix = [powers[i : i + degree + 1] for i in range(degree + 1)]
for coefficient in solve(matrix, moments):
    print(repr(float(coefficient)))
PY
python3 /app/fit.py 2 < /app/tide.txt
