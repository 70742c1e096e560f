"""The files of a report: one page, Markdown, and every number as JSON.

Rule: each file is replaced in one step; making a report again changes nothing but the report.
"""

from pathlib import Path

from headrace.engine.evaluation_markdown import markdown
from headrace.engine.evaluation_page import page
from headrace.engine.evaluation_report import Report, encoded
from headrace.engine.run_folder import not_writable, write_atomically

REPORT = "report"
"""The folder of a run that holds its report."""
PAGE, MARKDOWN, JSON = "index.html", "report.md", "evaluation.json"


def write(report: Report, folder: Path) -> Path:
    """Write the three files; returns the page's path. Blocking.

    Raises `RunFolderError` for a folder that cannot be made, `StoreError` when the disk fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise not_writable(f"{folder} cannot be made", e) from e
    write_atomically(folder / JSON, encoded(report))
    write_atomically(folder / MARKDOWN, markdown(report).encode())
    write_atomically(folder / PAGE, page(report).encode())
    return folder / PAGE
