"""The files of a pairs report: one page, Markdown, and every number as JSON.

Rule: each file is replaced in one step; making a report again changes nothing but the report.
"""

from pathlib import Path

from headrace.engine.evaluation_files import MARKDOWN, PAGE, REPORT
from headrace.engine.evaluation_report import encoded
from headrace.engine.run_folder import not_writable, write_atomically
from headrace.preferences.pairs_markdown import markdown
from headrace.preferences.pairs_page import page
from headrace.preferences.pairs_report import PairsReport

JSON = "pairs-report.json"


def write_pairs_report(report: PairsReport, folder: Path) -> Path:
    """Write the three files into `folder/report`; returns the page's path. Blocking.

    Raises `RunFolderError` for a folder that cannot be made, `StoreError` when the disk fails.
    """
    place = folder / REPORT
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise not_writable(f"{place} cannot be made", e) from e
    write_atomically(place / JSON, encoded(report))
    write_atomically(place / MARKDOWN, markdown(report).encode())
    write_atomically(place / PAGE, page(report).encode())
    return place / PAGE
