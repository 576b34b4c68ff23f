"""Readers: TSV, JSONL, JSON and CoNLL columns to examples, every bad row refused by file and line.

Spans become IOB2 whatever the file writes. It refuses to know tokens, label numbers and backbones.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from prefixbank.model_store.errors import InvalidData
from prefixbank.model_store.task_prompt import TaskFamily

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from prefixbank.trainer.recipe import DataSection, Recipe, Source

FORMATS = {".tsv": "tsv", ".jsonl": "jsonl", ".json": "json"}


@dataclass(frozen=True, slots=True)
class TextExample:
    """One or two texts and their label."""

    texts: tuple[str, ...]
    label: str
    where: str
    """File and line, from 1; for people."""


@dataclass(frozen=True, slots=True)
class WordsExample:
    """Words and one IOB2 tag each."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    where: str


Example = TextExample | WordsExample


class Splits(NamedTuple):
    """What a run learns from, chooses on and reports on."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    """Empty when the recipe names none: then the validation rows are reported."""


class _Row(NamedTuple):
    line: int
    fields: dict[str, Any]


def read_splits(recipe: Recipe, root: Path) -> Splits:
    """Read the splits of a recipe whose paths are relative to `root`.

    Raises:
        InvalidData: a file cannot be read, has no rows, or has a bad row.
    """
    data = recipe.data
    train = read_source(recipe, data.train, root)
    test = [] if data.test is None else read_source(recipe, data.test, root)
    if data.validation is not None:
        return Splits(train, read_source(recipe, data.validation, root), test)
    kept, carved = _carve(train, data.carve, recipe.seed, where=data.train.path)
    return Splits(kept, carved, test)


def read_source(recipe: Recipe, source: Source, root: Path) -> list[Example]:
    """Read one split: all rows of the file, then its slice, then its limit."""
    path = root / source.path
    build = _words_example if recipe.family == TaskFamily.TOKEN_CLASSIFICATION else _text_example
    try:
        rows = [build(row, recipe.data, path) for row in _rows(path, recipe.data)]
    except OSError as error:
        raise InvalidData(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidData(f"{path}: found bytes that are not UTF-8 at offset {error.start}") from error
    if source.rows is not None:
        rows = rows[slice(*source.rows)]
    if source.limit is not None and source.limit < len(rows):
        rows = random.Random(f"limit {recipe.seed}").sample(rows, source.limit)
    if not rows:
        raise InvalidData(f"{path}: found no rows{'' if source.rows is None else f' in {list(source.rows)}'}")
    return rows


def iob2(tags: Sequence[str], scheme: str) -> tuple[str, ...]:
    """Rewrite tags of `scheme` (iob1, iob2, bilou) as IOB2; a span that begins with I- begins with B- afterwards.

    Raises:
        ValueError: a tag is none of the scheme's.
    """
    starts = {"iob1": "B", "iob2": "B", "bilou": "BU"}[scheme]
    inside = {"iob1": "I", "iob2": "I", "bilou": "IL"}[scheme]
    written = []
    before = "O"
    for tag in tags:
        mark, _, kind = tag.partition("-")
        if tag != "O" and (not kind or mark not in starts + inside):
            raise ValueError(f"found tag {tag!r}, wanted O or {'-, '.join(starts + inside)}- and a type")
        continues = tag != "O" and mark in inside and before == kind
        written.append(tag if tag == "O" else f"{'I' if continues else 'B'}-{kind}")
        before = "O" if tag == "O" or mark in "LU" else kind
    return tuple(written)


def _carve(rows: list[Example], share: float, seed: int, where: str) -> tuple[list[Example], list[Example]]:
    count = round(share * len(rows)) if share < 1 else round(share)
    if not 0 < count < len(rows):
        raise InvalidData(f"{where}: cannot carve {count} validation rows from {len(rows)} training rows")
    chosen = set(random.Random(f"carve {seed}").sample(range(len(rows)), count))
    kept = [row for index, row in enumerate(rows) if index not in chosen]
    return kept, [rows[index] for index in sorted(chosen)]


def _rows(path: Path, data: DataSection) -> Iterator[_Row]:
    name = FORMATS.get(path.suffix, "conll") if data.format == "auto" else data.format
    readers: dict[str, Callable[[Path, DataSection], Iterator[_Row]]] = {
        "tsv": _tsv,
        "jsonl": _jsonl,
        "json": _json,
        "conll": _conll,
    }
    return readers[name](path, data)


def _tsv(path: Path, data: DataSection) -> Iterator[_Row]:
    """GLUE style: a header line, no quoting."""
    with path.open(encoding="utf-8", newline="\n") as lines:
        header = next(lines, "").rstrip("\r\n").split("\t")
        for number, line in enumerate(lines, 2):
            cells = line.rstrip("\r\n").split("\t")
            if cells == [""]:
                continue
            if len(cells) != len(header):
                raise InvalidData(f"{path}:{number}: found {len(cells)} columns, wanted {len(header)} as in the header")
            yield _Row(number, dict(zip(header, cells, strict=True)))


def _jsonl(path: Path, data: DataSection) -> Iterator[_Row]:
    with path.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _Row(number, _object(_parse(line.strip(), path, number), path, number))


def _json(path: Path, data: DataSection) -> Iterator[_Row]:
    """One list of objects (CoNLL04); the line of a row is its place in the list, from 1."""
    found = _parse(path.read_text("utf-8"), path, 1)
    if not isinstance(found, list):
        raise InvalidData(f"{path}: found {type(found).__name__}, wanted a list of objects")
    for number, row in enumerate(found, 1):
        yield _Row(number, _object(row, path, number))


def _conll(path: Path, data: DataSection) -> Iterator[_Row]:
    """Columns by tab where the line has one, else by blanks; sentences end at empty lines."""
    words: list[str] = []
    tags: list[str] = []
    first = 1
    with path.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            cells = line.rstrip("\r\n").split("\t") if "\t" in line.strip() else line.split()
            if not line.strip() or cells[0] == "-DOCSTART-":
                if words:
                    yield _Row(first, {data.text[0]: words, data.label: tags})
                words, tags, first = [], [], number + 1
                continue
            word, tag = _columns(cells, data, path, number)
            words.append(word)
            tags.append(tag)
    if words:
        yield _Row(first, {data.text[0]: words, data.label: tags})


def _columns(cells: list[str], data: DataSection, path: Path, number: int) -> tuple[str, str]:
    columns = (data.word_column, data.tag_column)
    if any(not -len(cells) <= column < len(cells) for column in columns) or len(cells) < 2:
        raise InvalidData(f"{path}:{number}: found {len(cells)} columns, wanted word and tag in columns {columns}")
    return cells[columns[0]].strip(), cells[columns[1]].strip()


def _parse(text: str, path: Path, number: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidData(f"{path}:{number + error.lineno - 1}: found no JSON: {error.msg}") from error


def _object(found: Any, path: Path, number: int) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise InvalidData(f"{path}:{number}: found {type(found).__name__}, wanted an object")
    return found


def _field(row: _Row, name: str, path: Path) -> Any:
    if name not in row.fields:
        raise InvalidData(f"{path}:{row.line}: found no field {name!r}, wanted it beside {', '.join(row.fields)}")
    return row.fields[name]


def _text_example(row: _Row, data: DataSection, path: Path) -> TextExample:
    texts = tuple(_field(row, name, path) for name in data.text)
    for name, text in zip(data.text, texts, strict=True):
        if not isinstance(text, str) or not text.strip():
            raise InvalidData(f"{path}:{row.line}: {name}: found {_shown(text)}, wanted a text that is not empty")
    label = _label(_field(row, data.label, path), data)
    if label is None:
        found = _shown(row.fields[data.label])
        raise InvalidData(f"{path}:{row.line}: {data.label}: found {found}, wanted a text, a whole number or a boolean")
    return TextExample(texts, label, f"{path.name}:{row.line}")


def _label(found: Any, data: DataSection) -> str | None:
    """The label as text, renamed; None when it is nothing that names a class."""
    if not isinstance(found, str | int) or found == "":
        return None
    text = str(found).lower() if isinstance(found, bool) else str(found)
    return data.rename.get(text, text)


def _words_example(row: _Row, data: DataSection, path: Path) -> WordsExample:
    words, tags = _field(row, data.text[0], path), _field(row, data.label, path)
    for name, found in ((data.text[0], words), (data.label, tags)):
        if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
            raise InvalidData(f"{path}:{row.line}: {name}: found {_shown(found)}, wanted a list of texts")
    if len(words) != len(tags) or not words:
        raise InvalidData(f"{path}:{row.line}: found {len(words)} words and {len(tags)} tags, wanted as many, and some")
    try:
        return WordsExample(tuple(words), _renamed(iob2(tags, data.scheme), data.rename), f"{path.name}:{row.line}")
    except ValueError as error:
        raise InvalidData(f"{path}:{row.line}: {error}") from error


def _renamed(tags: tuple[str, ...], rename: dict[str, str]) -> tuple[str, ...]:
    return tuple(tag if tag == "O" else f"{tag[:2]}{rename.get(tag[2:], tag[2:])}" for tag in tags)


def _shown(found: Any) -> str:
    """A short form for a message."""
    text = repr(found)
    return text if len(text) <= 60 else f"{text[:57]}..."
