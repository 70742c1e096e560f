"""Compares fit.py with an exact fit over polynomials made orthogonal on the points."""

import random
from fractions import Fraction

import grading


def value(polynomial, x):
    total = Fraction(0)
    for coefficient in reversed(polynomial):
        total = total * x + coefficient
    return total


def exact_fit(points, degree):
    """Coefficients by projection on an orthogonal basis, all in fractions."""
    xs, ys = zip(*points, strict=True)
    basis, fitted = [], [Fraction(0)] * (degree + 1)
    for k in range(degree + 1):
        new = [Fraction(0)] * k + [Fraction(1)]
        at = [x**k for x in xs]
        for polynomial, values, norm in basis:
            share = sum(a * b for a, b in zip(at, values, strict=True)) / norm
            at = [a - share * b for a, b in zip(at, values, strict=True)]
            for i, coefficient in enumerate(polynomial):
                new[i] -= share * coefficient
        norm = sum(a * a for a in at)
        basis.append((new, at, norm))
        share = sum(a * y for a, y in zip(at, ys, strict=True)) / norm
        for i, coefficient in enumerate(new):
            fitted[i] += share * coefficient
    return fitted


def expect(lines, degree):
    points = [tuple(Fraction(part) for part in x.split()) for x in lines if x and x[0] != "#"]
    out = grading.output(["python3", "/app/fit.py", str(degree)], stdin="\n".join(lines) + "\n")
    got = [float(line) for line in out.split()]
    assert len(got) == degree + 1, f"{len(got)} coefficients for degree {degree}"
    for k, want in enumerate(exact_fit(points, degree)):
        error = abs(Fraction(got[k]) - want) / max(abs(want), 1)
        assert error <= Fraction(1, 10**9), f"c{k} is {got[k]}, expected {float(want)}"


def scattered(seed, count, low, high, digits=2):
    random_ = random.Random(seed)
    rows = []
    for _ in range(count):
        x = random_.uniform(low, high)
        rows.append(f"{x:.{digits}f} {3 - 2 * x + 0.5 * x * x + random_.gauss(0, 5):.3f}")
    return rows


def test_a_parabola_through_scattered_points():
    expect(scattered(1, 60, -5, 5), 2)


def test_the_mean_is_degree_zero():
    expect(["1 2", "5 3", "9 10.5"], 0)


def test_a_line_with_comments_blank_lines_and_exponents():
    expect(["# heights", "", "1e0 2.5", "2.0 -4.25e1", "", "# end", "3.5   7"], 1)


def test_exact_interpolation():
    expect(["-1 6", "0 1", "2 9", "3 34"], 3)


def test_years_with_degree_four():
    expect(scattered(2, 40, 1950, 2024, digits=1), 4)


def test_degree_six_far_from_zero():
    expect(scattered(3, 100, 300, 310), 6)


def test_many_points():
    expect(scattered(4, 200, -100, 100), 5)


def test_too_few_different_x_is_singular():
    status, out, _ = grading.run(["python3", "/app/fit.py", "2"], stdin="1 2\n1.0 3\n4 5\n4 9\n")
    assert (status, out.strip()) == (3, "singular"), (status, out)


grading.main(globals(), needs="/app/fit.py")
