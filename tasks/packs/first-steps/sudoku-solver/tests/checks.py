"""Gives sudoku.py puzzles with known answers, reshaped so that no table of answers fits."""

import random

import grading


def known():
    with open("/tests/solved.txt") as file:
        return [tuple(line.split()) for line in file]


def reshape(seed):
    """A symmetry of sudoku as a function on grids: rows, columns, bands, digits, transposition."""
    random_ = random.Random(seed)

    def lines():
        bands = random_.sample(range(3), 3)
        return [3 * band + row for band in bands for row in random_.sample(range(3), 3)]

    rows, columns, digits = lines(), lines(), random_.sample("123456789", 9)
    digit = dict(zip("123456789", digits, strict=True)) | {".": "."}
    flip = random_.random() < 0.5

    def apply(grid):
        cells = [digit[grid[9 * r + c]] for r in rows for c in columns]
        return "".join(cells[9 * c + r] if flip else cells[9 * r + c]
                       for r in range(9) for c in range(9))

    return apply


def reshaped(seed):
    """The known puzzles and solutions, each under a symmetry of its own."""
    for number, (puzzle, solution) in enumerate(known()):
        shape = reshape(100 * seed + number)
        yield shape(puzzle), shape(solution)


def expect(cases, timeout_s):
    out = grading.output(
        ["python3", "/app/sudoku.py"], "".join(f"{puzzle}\n" for puzzle, _ in cases), timeout_s
    )
    got = out.split()
    assert len(got) == len(cases), f"{len(got)} answers for {len(cases)} puzzles"
    for (puzzle, want), found in zip(cases, got, strict=True):
        assert found == want, f"{puzzle}: expected {want}, got {found}"


def peers(a, b):
    same_box = a // 27 == b // 27 and a % 9 // 3 == b % 9 // 3
    return a // 9 == b // 9 or a % 9 == b % 9 or same_box


def spoiled(puzzle, solution, seed):
    """With one more given cell that breaks no rule by itself, but is not the solution's."""
    random_ = random.Random(seed)
    while True:
        cell, digit = random_.randrange(81), random_.choice("123456789")
        clash = any(peers(cell, other) and puzzle[other] == digit for other in range(81))
        if puzzle[cell] == "." and digit != solution[cell] and not clash:
            return puzzle[:cell] + digit + puzzle[cell + 1 :]


def thinned(puzzle, seed):
    """Without one given cell: the puzzles are minimal, so more than one solution is left."""
    cell = random.Random(seed).choice([i for i in range(81) if puzzle[i] != "."])
    return puzzle[:cell] + "." + puzzle[cell + 1 :]


def test_puzzles_with_one_solution():
    expect([*reshaped(1), *reshaped(2)], timeout_s=7)


def test_puzzles_without_a_solution():
    cases = [(spoiled(p, s, n), "none") for n, (p, s) in enumerate(reshaped(3))]
    expect(cases[:8], timeout_s=4)


def test_puzzles_with_many_solutions():
    cases = [(thinned(p, n), "many") for n, (p, _) in enumerate(reshaped(4))]
    expect([*cases[:8], ("." * 81, "many")], timeout_s=4)


def test_given_cells_that_break_the_rules():
    empty = "." * 81
    in_row, in_column = "5.......5" + empty[9:], "5" + empty[1:72] + "5" + empty[73:]
    in_box = "5........" + ".5......." + empty[18:]
    expect([(grid, "none") for grid in (in_row, in_column, in_box)], timeout_s=3)


def test_a_full_grid_is_its_own_solution():
    solution = next(reshaped(5))[1]
    swapped = solution[1] + solution[0] + solution[2:]
    expect([(solution, solution), (swapped, "none")], timeout_s=3)


def test_kinds_may_be_mixed():
    (a, solved), (b, _), (c, other) = list(reshaped(6))[:3]
    cases = [(a, solved), (thinned(b, 1), "many"), (spoiled(c, other, 2), "none"), (c, other)]
    expect(cases, timeout_s=4)


grading.main(globals(), needs="/app/sudoku.py")
