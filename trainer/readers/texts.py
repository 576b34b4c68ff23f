"""Texts: rows of GLUE and SuperGLUE files, and of any like them, to labelled texts.

A wanted column may be a template over fields, `{word}: {sentence1}` or `{target.span1_text}`, as WiC and WSC need.
It refuses to know files and tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefixbank.model_store.manifest import MAX_LABEL_CHARS
from prefixbank.trainer.readers.examples import TextExample
from prefixbank.trainer.readers.faults import BadRow, shown, text_of, unicode_of
from prefixbank.trainer.readers.tables import field, filled

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from prefixbank.trainer.readers.tables import Row
    from prefixbank.trainer.recipe import DataSection


def text_example(row: Row, data: DataSection, labels: Sequence[str] | None) -> TextExample:
    """The example of a row; `labels` are those that there may be, None where any may.

    Raises:
        BadRow: a field is absent, a text is empty or too long, or the label names no class or is too long for one.
    """
    found = tuple(filled(row, template, lambda name: text_of(field(row, name), name)) for template in data.text)
    longest, most = max(map(len, found)), data.max_characters
    if most is not None and longest > most:
        raise BadRow(f"found a text of {longest} characters, wanted at most {most}")
    return TextExample(found, label_of(row, data.label, data.rename, labels), row.where)


def label_of(row: Row, name: str, rename: Mapping[str, str], labels: Sequence[str] | None) -> str:
    """A label as text without blanks around it, renamed: texts, whole numbers and booleans name classes."""
    found = field(row, name)
    text = str(found).lower() if isinstance(found, bool) else str(found).strip()
    if not isinstance(found, str | int) or not text:
        raise BadRow(f"{name}: found {shown(found)}, wanted a text, a whole number or a boolean")
    label = unicode_of(rename.get(text, text), name)
    if len(label) > MAX_LABEL_CHARS:
        raise BadRow(f"{name}: found a label of {len(label):,} characters, wanted at most {MAX_LABEL_CHARS:,}")
    if labels is not None and label not in labels:
        raise BadRow(f"{name}: found the label {shown(label)}, wanted one of {', '.join(labels)}")
    return label
