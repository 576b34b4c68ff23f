"""Propositions: predicates with their arguments, from the columns of CoNLL-2005, CoNLL-2012 and PropBank.

A sentence has a column of brackets per predicate, in order. The predicate's word is the one that the target column
marks inside the column's V or C-V, which is where srl-eval.pl looks for it; without such a mark the first word of V.
The lines `index words ||| tags` of He et al. (2017), on which P-tuning v2 trained, are read too.
A row is a proposition; a sentence whose lines do not go together is one bad row.
It refuses to know tokens and label numbers.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, NamedTuple

from prefixbank.model_store.errors import InvalidData
from prefixbank.trainer.readers.columns import Block, blocks_of
from prefixbank.trainer.readers.examples import PropositionExample
from prefixbank.trainer.readers.faults import TOLERANT, BadRow, Fault, Reading, Tolerance, settle
from prefixbank.trainer.readers.files import lines_of
from prefixbank.trainer.readers.tags import BRACKETS, from_brackets, iob2

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from prefixbank.trainer.readers.files import Line

_VERB = ("B-V", "I-V", "B-C-V", "I-C-V")


class Layout(NamedTuple):
    """Which column holds what, from 0."""

    word: int
    target: int
    """`-`, or something else in the row of a predicate."""
    first: int
    """The first predicate's brackets."""
    num_after: int = 0
    """Columns after the last predicate's."""


PROPBANK = Layout(word=3, target=7, first=8)
"""Document, sentence, token, word, POS, parse, lemma, roleset, predicates."""
CONLL2012 = Layout(word=3, target=7, first=11, num_after=1)
"""As OntoNotes 5: sense, speaker and names stand before the predicates, coreference after them."""
CONLL2005 = Layout(word=0, target=1, first=2)
"""A words file and a props file side by side."""
LAYOUTS = {"propbank": PROPBANK, "conll2012": CONLL2012, "conll2005": CONLL2005}
"""By the name that a recipe gives them."""


def read_propositions(
    path: Path, layout: Layout = PROPBANK, tolerance: Tolerance = TOLERANT, *, words: Path | None = None
) -> Reading[PropositionExample]:
    """Every predicate of a file, sentence by sentence.

    Args:
        path: the file of columns.
        layout: its columns; CONLL2005 where `words` is given.
        tolerance: how many bad rows to leave out.
        words: the words of a CoNLL-2005 props file, line by line.

    Raises:
        InvalidData: a file cannot be read, or has too many bad rows.
    """
    return settle(propositions_of(path, layout, words), path, tolerance)


def read_tagged_lines(path: Path, tolerance: Tolerance = TOLERANT) -> Reading[PropositionExample]:
    """Every line `index words ||| tags` of a file.

    Raises:
        InvalidData: the file cannot be read, or has too many bad lines.
    """
    return settle(tagged_lines_of(path), path, tolerance)


def propositions_of(
    path: Path, layout: Layout = PROPBANK, words: Path | None = None
) -> Iterator[PropositionExample | Fault]:
    """The predicates of a file of columns; a bad sentence is a Fault."""
    blocks = blocks_of(path) if words is None else _side_by_side(words, path)
    return (result for block in blocks for result in _propositions(block, layout))


def tagged_lines_of(path: Path) -> Iterator[PropositionExample | Fault]:
    """The predicates of a file of lines `index words ||| tags`; a bad line is a Fault."""
    sentences: dict[tuple[str, ...], int] = {}
    for line in lines_of(path):
        if isinstance(line, Fault):
            yield line
        elif line.text.strip():
            yield _tagged_line(path, line, sentences)


def _side_by_side(words: Path, props: Path) -> Iterator[Block | Fault]:
    for left, right in zip_longest(blocks_of(words), blocks_of(props)):
        if left is None or right is None:
            raise InvalidData(f"{props}: found another number of sentences than in {words}")
        if isinstance(left, Fault) or isinstance(right, Fault):
            yield left if isinstance(left, Fault) else right
        elif len(left.rows) != len(right.rows):
            yield Fault(right.place(), f"found {len(right.rows)} lines, wanted {len(left.rows)} as in {left.place()}")
        else:
            pairs = zip(left.rows, right.rows, strict=True)
            rows = tuple(prop._replace(cells=(word.cells[0], *prop.cells)) for word, prop in pairs)
            yield right._replace(rows=rows)


def _propositions(block: Block | Fault, layout: Layout) -> Iterator[PropositionExample | Fault]:
    if isinstance(block, Fault):
        yield block
        return
    try:
        width = _width(block, layout)
    except BadRow as error:
        yield Fault(block.place(error.line), str(error))
        return
    words = tuple(row.cells[layout.word] for row in block.rows)
    marked = [row.cells[layout.target] != "-" for row in block.rows]
    for column in range(layout.first, width - layout.num_after):
        try:
            tags = from_brackets([row.cells[column] for row in block.rows])
            predicate = _predicate(tags, marked, words)
        except ValueError as error:
            yield Fault(block.place(), f"column {column + 1}: {error}")
        else:
            yield PropositionExample(words, tags, predicate, block.number, block.where)


def _width(block: Block, layout: Layout) -> int:
    """Columns of the sentence, the same in every line."""
    width, least = len(block.rows[0].cells), layout.first + layout.num_after
    for row in block.rows:
        if len(row.cells) != width:
            raise BadRow(f"found {len(row.cells)} columns, wanted {width} as in line {block.line}", row.line)
    if width < least:
        raise BadRow(f"found {width} columns, wanted {least} and one more for each predicate")
    if all(BRACKETS.fullmatch(row.cells[layout.target]) for row in block.rows):
        raise BadRow(f"found brackets in column {layout.target + 1}, wanted the predicates: is words = FILE missing?")
    return width


def _predicate(tags: Sequence[str], marked: Sequence[bool], words: Sequence[str]) -> int:
    verb = [place for place, tag in enumerate(tags) if tag in _VERB]
    if not verb:
        raise ValueError("found no predicate, wanted (V*)")
    place = next((place for place in verb if marked[place]), verb[0])
    if not words[place].strip():
        raise ValueError(f"found the predicate {words[place]!r}, wanted a word")
    return place


def _tagged_line(path: Path, line: Line, sentences: dict[tuple[str, ...], int]) -> PropositionExample | Fault:
    """Lines of the same words are predicates of one sentence: `sentences` has the number of each that was met."""
    left, bar, right = line.text.partition("|||")
    index, *words = left.split() or [""]
    try:
        tags = iob2(right.split(), "iob2")
    except ValueError as error:
        return Fault(f"{path}:{line.number}", str(error))
    if not bar or index not in map(str, range(len(words))) or len(words) != len(tags):
        found = f"found {len(words)} words, {len(tags)} tags and the index {index!r}"
        return Fault(f"{path}:{line.number}", f"{found}, wanted index, words, ||| and as many tags")
    sentence = sentences.setdefault(tuple(words), len(sentences))
    return PropositionExample(tuple(words), tags, int(index), sentence, f"{path.name}:{line.number}")
