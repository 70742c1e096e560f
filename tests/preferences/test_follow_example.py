"""`docs/howto/pairs.md` and its example, as they stand there; the example on a real run."""

import subprocess
import sys
from pathlib import Path

from headrace.preferences.rules import KINDS, load_rules

DOCS = Path(__file__).resolve().parents[2] / "docs"
EXAMPLE = DOCS / "examples" / "follow_pairs.py"
HOWTO = (DOCS / "howto" / "pairs.md").read_text()


def test_the_example_takes_the_pairs_of_a_run_that_goes_on(
    only_namespace: str, tmp_path: Path
) -> None:
    line = [sys.executable, EXAMPLE, tmp_path / "run", f"sandbox.provider={only_namespace}"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=55, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        f"first-steps/{name}: {over}: 'Run the reference solution.', not 'Look around.'"
        for name in ("lock-key-file", "remove-tmp-files", "sort-scores")
        for over in ("0 over 3", "2 over 1")
    ]


def block(language: str) -> str:
    """The first block of a language in the how-to."""
    return HOWTO.partition(f"```{language}\n")[2].partition("```")[0]


def test_the_rules_of_the_how_to_are_rules(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(block("toml"))
    margin, near = load_rules(file)
    assert (margin.name, margin.min_margin) == ("margin", 0.5)
    assert (near.name, near.per_task) == ("close calls", None)


def test_the_how_to_has_every_kind_of_rule() -> None:
    rows = [line.split("`")[1] for line in HOWTO.splitlines() if line.startswith("| `")]
    assert sorted(rows) == sorted(KINDS)


def test_the_python_of_the_how_to_compiles() -> None:
    compile(block("python"), "pairs.md", "exec")
