"""Where reports go: the JSON first, the page beside it, each put in place in one step.

It refuses to know what they say.
"""

from __future__ import annotations

import json
import logging
import re
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from prefixbank.model_store.durable import replace_file
from prefixbank.model_store.errors import InvalidReport
from prefixbank.trainer.report.page import render
from prefixbank.trainer.report.record import FILE
from prefixbank.trainer.report.sweep_page import render_sweep

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

logger = logging.getLogger(__name__)

SWEEP_FILE = "sweep.json"
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def write(report: Mapping[str, Any], folder: Path) -> None:
    """Put `report.json` and `report.html` in place. What keeps the page from being drawn is logged, not raised."""
    _write(report, folder / FILE, render)


def write_sweep(sweep: Mapping[str, Any], folder: Path) -> None:
    """Put `sweep.json` and `sweep.html` in place, as `write` does."""
    _write(sweep, folder / SWEEP_FILE, render_sweep)


def is_finished(folder: Path) -> bool:
    """Whether the folder holds a sweep that has come to its best settings."""
    try:
        return json.loads((folder / SWEEP_FILE).read_bytes()).get("best") is not None
    except (FileNotFoundError, ValueError):
        return False


def draw(path: Path, page: Path | None = None) -> Path:
    """Draw the page of a report or a sweep, a JSON file or the folder of one; return where it is.

    Args:
        page: by default beside the file, ending in .html.

    Raises:
        InvalidReport: there is none, or none that can be drawn.
    """
    path = _record_in(path) if path.is_dir() else path
    record = _read(path)
    drawn = (render_sweep if "trials" in record else render)(record, str(path))
    page = page or path.with_suffix(".html")
    replace_file(page, [_encoded(drawn)], staging=page.parent)
    return page


def _write(record: Mapping[str, Any], path: Path, render: Callable[[Mapping[str, Any]], str]) -> None:
    content = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
    replace_file(path, [content.encode() + b"\n"], staging=path.parent)
    page = path.with_suffix(".html")
    if find_spec("jinja2") is None:
        _say_without_pages()
        return
    try:
        replace_file(page, [_encoded(render(record))], staging=path.parent)
    except InvalidReport as error:
        logger.warning("%s: not written. This is a bug. %s", page, error)


@cache
def _say_without_pages() -> None:
    """Once a process: a sweep writes many reports."""
    logger.warning("reports are written without pages, jinja2 is not installed: pip install prefixbank[train]")


def _record_in(folder: Path) -> Path:
    for name in (FILE, SWEEP_FILE):
        if (folder / name).is_file():
            return folder / name
    raise InvalidReport(f"{folder}: found neither {FILE} nor {SWEEP_FILE}")


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidReport(f"{path}: found no JSON: {error}") from error
    if not isinstance(record, dict):
        raise InvalidReport(f"{path}: found a {type(record).__name__}, wanted an object")
    return record


def _encoded(page: str) -> bytes:
    """UTF-8; halves of characters, which JSON may hold, become question marks, and so do controls but line ends."""
    return _CONTROLS.sub("?", page).encode("utf-8", "replace")
