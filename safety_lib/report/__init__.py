"""What a gate run hands to people and machines: a page, a comment and a JUnit file.

All three show the same report and hold no date, no path and no name of a machine: the same report
gives the same bytes. What a model or an attacker wrote is shown as text and can be nothing else.
"""

from safety_lib.report.junit import render_junit
from safety_lib.report.markdown import render_markdown
from safety_lib.report.page import render_gate_report

__all__ = ["render_gate_report", "render_junit", "render_markdown"]
