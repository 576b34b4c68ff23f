"""What every command shares: where the store is, how addresses, families and revisions are spelled, and how to speak.

Results go to stdout, remarks to stderr.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from prefixbank.model_store.address import Address

DEFAULT_STORE = Path("store")
SHORT = 12
"""Digits of a revision that people are shown."""

StorePath = Annotated[
    Path, typer.Option("--store", envvar="PREFIXBANK_STORE", help="The store's folder.", show_default="store")
]
FamilyName = Literal[
    "text-classification", "token-classification", "question-answering", "multiple-choice", "semantic-role-labeling"
]


def address_of(task: str) -> Address:
    """The address spelled `tenant/task`; raises InvalidName."""
    from prefixbank.model_store.address import Address

    return Address.parse(task)


def remark(text: str) -> None:
    """Say something to a person."""
    typer.echo(text, err=True)
