"""Comparison with other methods by one protocol: `irae evaluate`.

`protocols` damages images, `methods` restore them, `runner` scores them and keeps what is done, `statistics` sums up,
`speed` measures each method in a process of its own, and `report` writes the tables as Markdown, HTML, JSON and CSV.
"""

from __future__ import annotations

from irae.evaluation.report import check_folder, failures, terminal_tables, write_report
from irae.evaluation.runner import Request, run

__all__ = ["Request", "check_folder", "failures", "run", "terminal_tables", "write_report"]
