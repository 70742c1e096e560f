"""Feeds calc.py expressions whose values are known because they are made from trees."""

import random
from fractions import Fraction

import grading

# Binding strength of each operator; the printed text needs parentheses only where it is looser.
STRENGTH = {"+": 1, "-": 1, "*": 2, "/": 2, "neg": 3, "^": 4, "number": 5}


def answers(lines):
    out = grading.output(["python3", "/app/calc.py"], stdin="".join(f"{x}\n" for x in lines))
    got = out.split("\n")
    assert got[-1] == "" and len(got) == len(lines) + 1, f"{len(lines)} lines in, {out[:300]!r} out"
    return [line.strip() for line in got[:-1]]


def expect(cases):
    for (line, want), got in zip(cases, answers([line for line, _ in cases]), strict=True):
        assert got == want, f"{line!r}: expected {want}, got {got!r}"


class Trees:
    """Random expressions as (text, value, operator); a value of None is an error."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def space(self):
        return self.random.choice(("", "", " ", "  ", "\t"))

    def wrap(self, part, needed):
        text, value, operator = part
        if STRENGTH[operator] < needed or self.random.random() < 0.1:
            return f"({self.space()}{text}{self.space()})"
        return text

    def make(self, depth):
        choice = self.random.random()
        if depth == 0 or choice < 0.1:
            number = self.random.randint(0, 30)
            return str(number), Fraction(number), "number"
        if choice < 0.25:
            inner = self.make(depth - 1)
            value = None if inner[1] is None else -inner[1]
            return f"-{self.space()}{self.wrap(inner, 3)}", value, "neg"
        if choice < 0.4:
            base = self.make(min(depth - 1, 1))
            exponent = self.random.randint(-4, 5)
            text = f"{self.wrap(base, 5)}{self.space()}^{self.space()}{exponent}"
            if base[1] is None or (base[1] == 0 and exponent < 0):
                return text, None, "^"
            return text, Fraction(base[1]) ** exponent, "^"
        operator = self.random.choice("+-*/")
        left, right = self.make(depth - 1), self.make(depth - 1)
        strength = STRENGTH[operator]
        text = (
            f"{self.wrap(left, strength)}{self.space()}{operator}"
            f"{self.space()}{self.wrap(right, strength + 1)}"
        )
        return text, self.apply(operator, left[1], right[1]), operator

    @staticmethod
    def apply(operator, a, b):
        if a is None or b is None or (operator == "/" and b == 0):
            return None
        return {"+": lambda: a + b, "-": lambda: a - b, "*": lambda: a * b, "/": lambda: a / b}[
            operator
        ]()


def test_random_expressions():
    trees = Trees(20)
    cases = []
    while len(cases) < 400:
        text, value, _ = trees.make(4)
        if len(text) < 400:
            cases.append((text, "error" if value is None else str(value)))
    assert 10 < sum(want == "error" for _, want in cases) < 200
    expect(cases)


def test_power_groups_to_the_right_and_binds_tighter_than_minus():
    expect(
        [
            ("2^2^3", "256"),
            ("-3^2", "-9"),
            ("(-3)^2", "9"),
            ("2^-2", "1/4"),
            ("2^-2^2", "1/16"),
            ("-2^-1", "-1/2"),
            ("0^0", "1"),
            ("5 ^ (6/3)", "25"),
            ("7^60", str(7**60)),
        ]
    )


def test_minus_signs_pile_up():
    expect([("--5", "5"), ("1---1", "0"), ("2*-3", "-6"), ("6/-4", "-3/2"), ("-(-(2))", "2")])


def test_subtraction_and_division_group_to_the_left():
    expect([("10-4-3", "3"), ("100/10/4", "5/2"), ("2-3+4", "3"), ("12/4*3", "9")])


def test_values_stay_exact():
    expect(
        [
            ("1/3+1/3+1/3", "1"),
            ("99999999999999999999*99999999999999999999", str(99999999999999999999**2)),
            ("1/10 + 2/10 - 3/10", "0"),
            ("007 / 014", "1/2"),
        ]
    )


def test_errors():
    malformed = (
        "", " ", "1 2", "1+", "*3", "(1", "1)", "()", "2(3)", "(2)(3)", "+1", "1.5", "1e3", "0x10",
        "1_000", "2**3", "7//2", "7%2", "a", "abs(3)", "1,2", "1;2", "3 ^", "None", "[1]", "\u0662",
    )
    impossible = ("1/0", "5/(3-3)", "0^-1", "(2-2)^-3", "2^(1/2)", "4^(1/2)", "1+1/0*0")
    expect([(line, "error") for line in malformed + impossible])


def test_an_error_does_not_stop_the_rest():
    expect([("1/0", "error"), ("1+1", "2"), ("((", "error"), ("3*3", "9")])


grading.main(globals(), needs="/app/calc.py")
