"""Runs life.py on boards of its own and compares with a simulation on a padded array."""

import random

import grading


def generation(board):
    rows, columns = len(board), len(board[0])
    after = []
    for r in range(rows):
        row = []
        for c in range(columns):
            near = -board[r][c]
            for dr in (-1, 0, 1):
                line = board[(r + dr) % rows]
                near += line[c - 1] + line[c] + line[(c + 1) % columns]
            row.append(int(near == 3 or (near == 2 and board[r][c])))
        after.append(row)
    return after


def text(board):
    return "".join("".join(".#"[cell] for cell in row) + "\n" for row in board)


def expect(board, generations, same_as=None):
    """`same_as`: a smaller count known to give the same board."""
    want = board
    for _ in range(generations if same_as is None else same_as):
        want = generation(want)
    got = grading.output(
        ["python3", "/app/life.py", str(generations)], stdin=text(board), timeout_s=3
    )
    got = "".join(line.rstrip() + "\n" for line in got.rstrip("\n").split("\n"))
    assert got == text(want), f"wrong after {generations} generations of\n{text(board)}\n{got}"


def scattered(seed, rows, columns, share=0.35):
    random_ = random.Random(seed)
    return [[int(random_.random() < share) for _ in range(columns)] for _ in range(rows)]


def with_glider(rows, columns):
    board = [[0] * columns for _ in range(rows)]
    for r, c in ((0, 1), (1, 2), (2, 0), (2, 1), (2, 2)):
        board[r][c] = 1
    return board


def test_no_generation_prints_the_board_itself():
    expect(scattered(1, 5, 9), 0)


def test_scattered_boards():
    for seed, rows, columns, generations in ((2, 16, 16, 30), (3, 7, 12, 1), (4, 12, 5, 17)):
        expect(scattered(seed, rows, columns), generations)


def test_the_smallest_board():
    for seed in (5, 6):
        expect(scattered(seed, 3, 3), 2)


def test_a_glider_wraps_around_the_edges():
    expect(with_glider(9, 9), 35)


def test_a_dead_board_stays_dead():
    expect([[0] * 6 for _ in range(4)], 1000, same_as=1)


def test_a_large_count_on_a_glider():
    # Four steps move a glider by one cell down and right: 13 * 4 steps bring it home.
    expect(with_glider(13, 13), 10**15 + 7, same_as=(10**15 + 7) % 52)


def test_a_large_count_after_a_transient():
    board = scattered(7, 10, 11)
    seen, states = {}, []
    current = board
    while text(current) not in seen:
        seen[text(current)] = len(states)
        states.append(current)
        current = generation(current)
    start, period = seen[text(current)], len(states) - seen[text(current)]
    count = 10**14 + 3
    expect(board, count, same_as=start + (count - start) % period)


grading.main(globals(), needs="/app/life.py")
