"""`upshift report`: the page that shows a run."""

from __future__ import annotations

from pathlib import Path

from upshift.core.files import write_bytes
from upshift.core.records import RunFolder
from upshift.reports.evaluated import evaluation_lines as evaluation_lines
from upshift.reports.evaluated import prediction_line as prediction_line
from upshift.reports.summary import optimize_lines as optimize_lines
from upshift.reports.summary import summary_lines as summary_lines
from upshift.reports.tuned import tuning_lines as tuning_lines
from upshift.workflows.arguments import verb


@verb
def report(run: str | Path, *, out: str | Path | None = None) -> Path:
    """Write the report of a finished run, one HTML page that needs nothing but itself.

    Args:
        run: The run folder.
        out: The file to write, or a folder for it; `report.html` in the run folder when None.

    Returns:
        The file written.

    Raises:
        ArtifactError: The folder holds no finished run.
        StorageError: The file cannot be written.
    """
    from upshift.reports.page import render
    from upshift.reports.records import load_records

    folder = RunFolder(Path(run))
    page = render(load_records(folder))
    path = Path(out) if out else folder.report
    if path.is_dir():
        path = path / folder.report.name
    write_bytes(path, page.encode())
    return path
