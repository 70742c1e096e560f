#!/bin/bash
# A set of live cells, and a memory of the boards seen: a repeat makes the rest of N a remainder.
set -eu
cat > /app/life.py <<'PY'
import sys


def step(alive, rows, columns):
    counts = {}
    for r, c in alive:
        for dr in (-1, 0, 1):
            for dc in (-1, 0, 1):
                if dr or dc:
                    cell = ((r + dr) % rows, (c + dc) % columns)
                    counts[cell] = counts.get(cell, 0) + 1
    return frozenset(
        cell for cell, n in counts.items() if n == 3 or (n == 2 and cell in alive)
    )


def main():
    generations = int(sys.argv[1])
    lines = sys.stdin.read().split()
    rows, columns = len(lines), len(lines[0])
    alive = frozenset(
        (r, c) for r, line in enumerate(lines) for c, mark in enumerate(line) if mark == "#"
    )
    seen = {alive: 0}
    history = [alive]
    while len(history) <= generations:
        alive = step(alive, rows, columns)
        if alive in seen:
            start = seen[alive]
            alive = history[start + (generations - start) % (len(history) - start)]
            break
        seen[alive] = len(history)
        history.append(alive)
    for r in range(rows):
        print("".join("#" if (r, c) in alive else "." for c in range(columns)))


main()
PY
python3 /app/life.py 4 < /app/glider.txt
