"""`prefixbank report`: the page of a run or of a sweep, drawn from its JSON alone.

The page's path goes to stdout. It refuses to know how a page looks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecordPath = Annotated[
    Path, typer.Argument(metavar="RUN_FOLDER_OR_JSON", help="report.json or sweep.json, or the folder of one.")
]
PagePath = Annotated[Path | None, typer.Option(help="The page.", show_default="beside the JSON, ending in .html")]


def report(record: RecordPath, out: PagePath = None) -> None:
    """Draw a run's report or a sweep as one HTML page that needs nothing else. Prints the page's path.

    Example: `prefixbank report runs/intents`
    """
    from prefixbank.trainer.report.files import draw

    typer.echo(draw(record, out))
