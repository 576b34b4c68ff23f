"""Reports: what a run or a sweep was and reached, as JSON for programs and as one HTML page for people.

`record` says what report.json holds, `schema` what the pages read of it, `page` and `sweep_page` draw it,
`files` puts it on disk. Importing this loads neither torch nor jinja2. It refuses to know how to train, to evaluate
and to serve.
"""

from prefixbank.trainer.report.files import is_finished, write, write_sweep
from prefixbank.trainer.report.page import render
from prefixbank.trainer.report.record import FILE, SCHEMA_VERSION, SplitSummary, compose, summarise
from prefixbank.trainer.report.sweep_page import render_sweep

__all__ = [
    "FILE",
    "SCHEMA_VERSION",
    "SplitSummary",
    "compose",
    "is_finished",
    "render",
    "render_sweep",
    "summarise",
    "write",
    "write_sweep",
]
