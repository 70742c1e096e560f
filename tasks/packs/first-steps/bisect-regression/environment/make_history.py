"""Writes the repository of the task: make_history.py FOLDER

Names, dates and contents are fixed, so every commit has the same hash wherever this runs.
"""

import subprocess
import sys

AUTHORS = ("Ines Rau <ines@tally.invalid>", "Otto Lind <otto@tally.invalid>")
START = 1_650_000_000

TALLY = '''"""tally: small statistics on the command line. Usage: tally.py COMMAND NUMBER..."""

import sys

import figures

COMMANDS = {
    "sum": figures.total,
    "mean": figures.mean,
    "median": figures.median,
}


def show(value):
    return f"{value:.4f}".rstrip("0").rstrip(".")


def main(arguments):
    if len(arguments) < 2 or arguments[0] not in COMMANDS:
        print("usage: tally.py " + "|".join(COMMANDS) + " NUMBER...", file=sys.stderr)
        return 2
    values = [float(word) for word in arguments[1:]]
    print(show(COMMANDS[arguments[0]](values)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
'''

FIGURES = '''"""The figures that tally knows. Each takes a list of numbers that is not empty."""


def total(values):
    return sum(values)


def mean(values):
    return sum(values) / len(values)


def median(values):
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2
'''

QUARTILE = '''

def quartile(values):
    """The value a quarter of the way up, the lower one where it falls between two."""
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 4]
'''

CULPRIT_HELPER = '''

def ranked(values):
    """The values in order, compared by a key that is cheap to make."""
    return sorted(values, key=str)
'''

TRIMMED = '''

def trimmed(values):
    """The mean without the smallest and the largest value, if there are more than two."""
    kept = ranked(values)[1:-1] or values
    return sum(kept) / len(kept)
'''

GAP = '''

def gap(values):
    """The largest distance between two neighbours in order."""
    ordered = ranked(values)
    return max((b - a for a, b in zip(ordered, ordered[1:])), default=0)
'''

SIMPLE = {
    "count": "    return len(values)",
    "product": "    result = 1\n    for value in values:\n        result *= value\n    return result",
    "min": "    return min(values)",
    "max": "    return max(values)",
    "range": "    return max(values) - min(values)",
    "variance": "    centre = mean(values)\n    return sum((v - centre) ** 2 for v in values) / len(values)",
    "squares": "    return sum(value * value for value in values)",
    "distinct": "    return len(set(values))",
    "last": "    return values[-1]",
    "harmonic": "    return len(values) / sum(1 / value for value in values)",
}
PYTHON_NAME = {"min": "smallest", "max": "largest", "range": "extent"}


class History:
    def __init__(self):
        self.files, self.stream, self.count = {}, [], 0

    def edit(self, path, old, new):
        assert self.files[path].count(old) == 1, (path, old)
        self.files[path] = self.files[path].replace(old, new)

    def append(self, path, text):
        self.files[path] = self.files.get(path, "") + text

    def commit(self, message):
        self.count += 1
        stamp = f"{AUTHORS[self.count * 5 % 7 % 2]} {START + self.count * 86_000} +0000"
        body = message + "\n"
        lines = [f"commit refs/heads/main\nmark :{self.count}\nauthor {stamp}\ncommitter {stamp}\n"]
        lines.append(f"data {len(body.encode())}\n{body}")
        if self.count > 1:
            lines.append(f"from :{self.count - 1}\n")
        for path, text in sorted(self.files.items()):
            lines.append(f"M 100644 inline {path}\ndata {len(text.encode())}\n{text}\n")
        self.stream.append("".join(lines) + "\n")

    def command(self, name, function):
        line = f'    "{name}": figures.{function},\n'
        self.edit("tally.py", "}\n\n\ndef show", f"{line}}}\n\n\ndef show")

    def simple(self, name):
        function = PYTHON_NAME.get(name, name)
        self.append("figures.py", f"\n\ndef {function}(values):\n{SIMPLE[name]}\n")
        self.command(name, function)
        self.commit(f"Add the command {name}")

    def note(self, text):
        self.append("CHANGES.txt", f"- {text}\n")
        self.commit(f"Changes: {text}")

    def tag(self, name):
        self.stream.append(f"reset refs/tags/{name}\nfrom :{self.count}\n\n")


def before(history):
    history.files = {"tally.py": TALLY, "figures.py": FIGURES, "CHANGES.txt": "tally\n\n"}
    history.commit("Sum, mean and median")
    history.note("first version for friends")
    for name in ("count", "product", "min"):
        history.simple(name)
    history.append("figures.py", QUARTILE)
    history.command("quartile", "quartile")
    history.commit("Add the command quartile")
    history.note("quartile added")
    history.tag("v1.0")
    for name in ("max", "range"):
        history.simple(name)
    for number in range(9):
        history.note(f"sentence {number + 1} of the manual checked")
    history.edit("tally.py", "import figures\n", "import figures\nimport formats\n")
    history.commit("Prepare output formats")
    history.note("formats planned")
    history.edit("tally.py", "import figures\nimport formats\n", "import figures\n")
    history.commit("Drop the output formats again")
    history.simple("variance")
    history.note("variance added")


def culprit(history):
    text = history.files["figures.py"]
    head, tail = text.split("\n\ndef total", 1)
    text = head + CULPRIT_HELPER + "\n\ndef total" + tail
    assert text.count("ordered = sorted(values)") == 2
    history.files["figures.py"] = text.replace("ordered = sorted(values)", "ordered = ranked(values)")
    history.edit("figures.py", "that is not empty.", "that is not empty and stays as it is.")
    history.commit("Share the ordering of values")


def after(history):
    history.note("ordering shared")
    history.simple("squares")
    history.append("figures.py", TRIMMED)
    history.command("trimmed", "trimmed")
    history.commit("Add the command trimmed")
    history.edit("tally.py", "    values = [float", "    value = [float")
    history.commit("Shorter names")
    history.note("names made shorter")
    history.edit("tally.py", "    value = [float", "    values = [float")
    history.commit("Undo the shorter names")
    history.append("figures.py", GAP)
    history.command("gap", "gap")
    history.commit("Add the command gap")
    for number in range(8):
        history.note(f"sentence {number + 10} of the manual checked")
    history.edit(
        "figures.py",
        "def median(values):\n    ordered = ranked(values)\n    middle = len(ordered) // 2\n",
        "def median(values):\n"
        '    """The middle value, or the mean of the middle two."""\n'
        "    ordered = ranked(values)\n    middle, odd = divmod(len(ordered), 2)\n",
    )
    history.edit("figures.py", "    if len(ordered) % 2:\n", "    if odd:\n")
    history.commit("Say what the median is")
    for name in ("distinct", "last", "harmonic"):
        history.simple(name)
    history.edit("tally.py", '.rstrip("0").rstrip(".")\n', '.rstrip("0").rstrip(".") or "0"\n')
    history.commit("Never print an empty line")
    for number in range(5):
        history.note(f"sentence {number + 18} of the manual checked")


def main():
    folder = sys.argv[1]
    history = History()
    before(history)
    culprit(history)
    marked = history.count
    after(history)
    subprocess.run(["git", "init", "-q", "-b", "main", folder], check=True)
    stream = "".join(history.stream).encode()
    subprocess.run(["git", "fast-import", "--quiet"], cwd=folder, input=stream, check=True)
    subprocess.run(["git", "checkout", "-q", "-f", "main"], cwd=folder, check=True)
    if "--tell" in sys.argv:
        print(f"{history.count} commits, the culprit is number {marked}")


main()
