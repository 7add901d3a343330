"""How much information each layer of a network keeps: `irae probe`.

`taps` shows the layers of a network, `networks` finds it by name, `patches` says what natural patches are. The
instruments are `inverse`, `jacobian`, `reconstruction` and `estimators`; `probe` runs them, `report` writes what they
found, `truth` and `selftest` try them on cases with known answers.
"""

from __future__ import annotations

from irae.probe.estimators import EstimatorError
from irae.probe.probe import QUICK, Settings, run
from irae.probe.report import notes, rich_table, self_test_table, shown, write_report
from irae.probe.selftest import self_test
from irae.probe.taps import ProbeError

__all__ = [
    "QUICK",
    "EstimatorError",
    "ProbeError",
    "Settings",
    "notes",
    "rich_table",
    "run",
    "self_test",
    "self_test_table",
    "shown",
    "write_report",
]
