"""Put the table of `bench/results/peers.json` into README.md and docs/performance.md.

python -m bench.peers.docs
"""

import argparse
import json
from pathlib import Path

from bench.peers.table import NOTHING, markdown, pages, with_table

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "bench" / "results" / "peers.json"


def stored_table() -> str:
    """The table of the stored result, or the sentence that there is none."""
    if not RESULT.exists():
        return NOTHING
    result = json.loads(RESULT.read_text())
    found = result["metrics"]
    rounds = min(int(value) for name, value in found.items() if name.endswith("_rounds"))
    told = f"{result['machine']}; headrace at {result['commit']}; medians of {rounds} rounds."
    return f"{markdown(found)}\n\n{told}"


def main() -> None:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    table = stored_table()
    for page in pages(ROOT):
        page.write_text(with_table(page.read_text(), table))
        print(f"written: {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
