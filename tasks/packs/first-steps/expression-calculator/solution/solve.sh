#!/bin/bash
# Recursive descent over a list of tokens; Fraction keeps the values exact.
set -eu
cat > /app/calc.py <<'PY'
import re
import sys
from fractions import Fraction

TOKEN = re.compile(r"[ \t]*([0-9]+|[-+*/^()])")


class Malformed(Exception):
    pass


def tokens(line):
    line = line.rstrip(" \t")
    found, at = [], 0
    while at < len(line):
        match = TOKEN.match(line, at)
        if match is None:
            raise Malformed
        found.append(match.group(1))
        at = match.end()
    return found


class Parser:
    def __init__(self, line):
        self.tokens = tokens(line)
        self.at = 0

    def peek(self):
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def take(self):
        token = self.peek()
        if token is None:
            raise Malformed
        self.at += 1
        return token

    def value(self):
        result = self.sum()
        if self.peek() is not None:
            raise Malformed
        return result

    def sum(self):
        left = self.product()
        while self.peek() in ("+", "-"):
            if self.take() == "+":
                left += self.product()
            else:
                left -= self.product()
        return left

    def product(self):
        left = self.signed()
        while self.peek() in ("*", "/"):
            if self.take() == "*":
                left *= self.signed()
            else:
                left /= self.signed()
        return left

    def signed(self):
        if self.peek() == "-":
            self.take()
            return -self.signed()
        return self.power()

    def power(self):
        base = self.atom()
        if self.peek() != "^":
            return base
        self.take()
        exponent = self.signed()
        if exponent.denominator != 1:
            raise Malformed
        return Fraction(base) ** int(exponent)

    def atom(self):
        token = self.take()
        if token == "(":
            inner = self.sum()
            if self.take() != ")":
                raise Malformed
            return inner
        if not token.isdigit():
            raise Malformed
        return Fraction(int(token))


for line in sys.stdin:
    try:
        print(Parser(line.rstrip("\n")).value())
    except (Malformed, ZeroDivisionError):
        print("error")
PY
python3 /app/calc.py < /app/examples.txt
