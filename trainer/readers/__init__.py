"""Readers: what a recipe names to examples; a bad row is named by file and line, and left out up to a share.

`splits` reads a recipe's splits, `sources` finds the reader of a family's format; `tables`, `columns`, `squad`,
`propositions`, `choices` and `hub` read the formats. A reader refuses to know tokens, label numbers and backbones.
"""

from prefixbank.trainer.readers.examples import Example, TextExample, WordsExample
from prefixbank.trainer.readers.faults import Reading
from prefixbank.trainer.readers.splits import Splits, read, read_splits
from prefixbank.trainer.readers.tags import iob2

__all__ = [
    "Example",
    "Reading",
    "Splits",
    "TextExample",
    "WordsExample",
    "iob2",
    "read",
    "read_splits",
]
