#!/bin/bash
# Depth-first search on bit masks, always in the cell or unit with the fewest choices; it stops at the second solution.
set -eu
cat > /app/sudoku.py <<'PY'
import sys

UNITS = [[9 * r + c for c in range(9)] for r in range(9)]
UNITS += [[9 * r + c for r in range(9)] for c in range(9)]
UNITS += [
    [9 * (r + i) + c + j for i in range(3) for j in range(3)] for r in (0, 3, 6) for c in (0, 3, 6)
]
PEERS = [sorted({p for unit in UNITS if cell in unit for p in unit} - {cell}) for cell in range(81)]
ALL = 0x1FF


def place(grid, cell, bit):
    """Gives a cell its digit and follows up what that settles; False on a contradiction."""
    pending = [(cell, bit)]
    while pending:
        cell, bit = pending.pop()
        if not grid[cell] & bit:
            return False
        grid[cell] = bit
        for peer in PEERS[cell]:
            if grid[peer] & bit:
                grid[peer] &= ~bit
                left = grid[peer]
                if not left:
                    return False
                if left & (left - 1) == 0:
                    pending.append((peer, left))
    return True


def choices(grid):
    """The places and digits of the tightest cell or unit; None if the grid is full."""
    best = None
    for cell, mask in enumerate(grid):
        count = mask.bit_count()
        if count > 1 and (best is None or count < len(best)):
            best = [(cell, 1 << d) for d in range(9) if mask >> d & 1]
            if count == 2:
                return best
    for unit in UNITS:
        for digit in range(9):
            spots = [cell for cell in unit if grid[cell] >> digit & 1]
            if best is not None and len(spots) < len(best):
                if len(spots) == 1 and grid[spots[0]] == 1 << digit:
                    continue
                best = [(cell, 1 << digit) for cell in spots]
    return best


def solutions(grid, found):
    options = choices(grid)
    if options is None:
        found.append("".join(str(mask.bit_length()) for mask in grid))
        return
    for cell, bit in options:
        copy = grid[:]
        if place(copy, cell, bit):
            solutions(copy, found)
            if len(found) > 1:
                return


def answer(puzzle):
    grid = [ALL] * 81
    for cell, mark in enumerate(puzzle):
        if mark != "." and not place(grid, cell, 1 << int(mark) - 1):
            return "none"
    found = []
    solutions(grid, found)
    return ("none", found[0] if found else "", "many")[len(found)]


for line in sys.stdin:
    print(answer(line.strip()))
PY
python3 /app/sudoku.py < /app/puzzles.txt
