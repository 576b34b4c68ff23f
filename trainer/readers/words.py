"""Words: CoNLL columns and lists of words to tagged sentences, in IOB2 whatever the file writes.

It refuses to know files and tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefixbank.trainer.readers.examples import WordsExample
from prefixbank.trainer.readers.faults import BadRow, Fault, shown, unicode_of
from prefixbank.trainer.readers.tables import field
from prefixbank.trainer.readers.tags import iob2

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from prefixbank.trainer.readers.columns import Block, Cells
    from prefixbank.trainer.readers.tables import Row
    from prefixbank.trainer.recipe import DataSection


def listed_words(row: Row, data: DataSection) -> WordsExample:
    """The example of a row that has a list of words and a list of tags.

    Raises:
        BadRow: a list is absent, or the lists do not go together.
    """
    words, tags = field(row, data.text[0]), field(row, data.label)
    return _example(_texts(words, data.text[0]), [str(tag) for tag in _listed(tags, data.label)], data, row.where)


def _texts(found: object, name: str) -> list[str]:
    texts = _listed(found, name)
    if not all(isinstance(item, str) for item in texts):
        raise BadRow(f"{name}: found {shown(found)}, wanted a list of texts")
    unicode_of(" ".join(texts), name)
    return texts


def _listed(found: object, name: str) -> list[Any]:
    """A list of texts or numbers: some data sets number their tags, and `rename` gives them names."""
    if not isinstance(found, list) or not all(isinstance(item, str | int) for item in found):
        raise BadRow(f"{name}: found {shown(found)}, wanted a list of texts")
    return found


def column_words(block: Block, data: DataSection) -> WordsExample:
    """The example of a sentence in columns.

    Raises:
        BadRow: a line lacks a column or the prefix of words, or a tag is none of the scheme's.
    """
    pairs = [_word_and_tag(row, data) for row in block.rows]
    return _example([word for word, _ in pairs], [tag for _, tag in pairs], data, block.where)


def of_equal_width(blocks: Iterable[Block | Fault]) -> Iterator[Block | Fault]:
    """Sentences with as many columns in every line as the file's first line; others become faults."""
    first: Cells | None = None
    for block in blocks:
        if isinstance(block, Fault):
            yield block
            continue
        first = first or block.rows[0]
        width = len(first.cells)
        odd = next((row for row in block.rows if len(row.cells) != width), None)
        problem = f"wanted {width} as in line {first.line}"
        yield block if odd is None else Fault(block.place(odd.line), f"found {len(odd.cells)} columns, {problem}")


def _word_and_tag(row: Cells, data: DataSection) -> tuple[str, str]:
    columns = (data.word_column, data.tag_column)
    if any(not -len(row.cells) <= column < len(row.cells) for column in columns) or len(row.cells) < 2:
        raise BadRow(f"found {len(row.cells)} columns, wanted word and tag in columns {columns}", row.line)
    word, tag = (row.cells[column] for column in columns)
    if not word.startswith(data.word_prefix):
        raise BadRow(f"found the word {shown(word)}, wanted one that begins with {data.word_prefix!r}", row.line)
    word = word.removeprefix(data.word_prefix)
    if not word:
        raise BadRow("found an empty word", row.line)
    return word, tag


def _example(words: Sequence[str], tags: Sequence[str], data: DataSection, where: str) -> WordsExample:
    if len(words) != len(tags) or not words:
        raise BadRow(f"found {len(words)} words and {len(tags)} tags, wanted as many, and some")
    try:
        written = iob2([data.rename.get(tag, tag) for tag in tags], data.scheme)
    except ValueError as error:
        raise BadRow(str(error)) from error
    renamed = tuple(tag if tag == "O" else f"{tag[:2]}{data.rename.get(tag[2:], tag[2:])}" for tag in written)
    odd = next((tag for tag in renamed if data.labels is not None and tag not in data.labels), None)
    if odd is not None:
        raise BadRow(f"found the tag {shown(odd)}, wanted one of {', '.join(data.labels or ())}")
    return WordsExample(tuple(words), renamed, where)
