"""Comparison with other methods by one protocol: `irae evaluate`.

`protocols` damages images, `methods` restore them, `runner` scores them and keeps what is done, `statistics` sums up,
`speed` measures each method in a process of its own, and `report` writes the tables as Markdown, HTML, JSON and CSV.
"""

from __future__ import annotations

from irae.evaluation.methods import EvaluationError
from irae.evaluation.report import check_folder, terminal_tables, write_report
from irae.evaluation.runner import Request, run

__all__ = ["EvaluationError", "Request", "check_folder", "run", "terminal_tables", "write_report"]
