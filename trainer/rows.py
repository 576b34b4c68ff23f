"""Examples to rows: token ids and numbered targets, exactly as the server will make them from a request.

It refuses to know files, parameters and devices.

Shape letters: T tokens of one row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from prefixbank.model_store.errors import InvalidData
from prefixbank.model_store.tasks.features import Text, Truncation, Words
from prefixbank.model_store.tasks.spans import OUTSIDE
from prefixbank.model_store.tasks.text_classification import TextClassification
from prefixbank.model_store.tasks.token_classification import TokenClassification, first_token_targets
from prefixbank.model_store.tasks.tokenizer import TextTokenizer
from prefixbank.trainer.readers import TextExample, WordsExample

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from prefixbank.model_store.task_prompt import Preprocessing
    from prefixbank.model_store.tasks.features import Features
    from prefixbank.trainer.readers import Example

CUT = Truncation.CUT


class Row(NamedTuple):
    """One example ready for the backbone."""

    features: Features
    targets: NDArray[np.int64]
    """[1] the class of the row, or [T] the class of each word's first token and NO_TARGET elsewhere."""
    example: Example

    @property
    def num_tokens(self) -> int:
        return self.features.num_tokens


def label_names(examples: Iterable[Example], fixed: tuple[str, ...] | None) -> tuple[str, ...]:
    """The labels of a task: as the recipe fixes them, else sorted; words get O, then B- and I- of every type."""
    if fixed is not None:
        return fixed
    labels: set[str] = set()
    kinds: set[str] = set()
    for example in examples:
        if isinstance(example, TextExample):
            labels.add(example.label)
        elif isinstance(example, WordsExample):
            kinds.update(tag[2:] for tag in example.tags if tag != OUTSIDE)
    if labels:
        return tuple(sorted(labels, key=lambda label: (not label.isdecimal(), label.isdecimal() and int(label), label)))
    return (OUTSIDE, *(f"{mark}-{kind}" for kind in sorted(kinds) for mark in "BI"))


def encode_rows(
    examples: Sequence[Example], labels: Sequence[str], tokenizer: Tokenizer, prep: Preprocessing
) -> list[Row]:
    """Tokenise examples, cutting long ones, and number their labels.

    Raises:
        InvalidData: an example has a label that is not among `labels`.
    """
    text_tokenizer = TextTokenizer(tokenizer)
    classes = {label: index for index, label in enumerate(labels)}
    return [_row(example, classes, text_tokenizer, prep) for example in examples]


def _row(example: Example, classes: dict[str, int], tokenizer: TextTokenizer, prep: Preprocessing) -> Row:
    if isinstance(example, TextExample):
        features = TextClassification().encode(
            tokenizer, prep, Text(*example.texts), max_tokens=prep.max_tokens, truncation=CUT
        )
        return Row(features, np.array([_class(example.label, classes, example)]), example)
    assert isinstance(example, WordsExample), "an example of another family. This is a bug."
    words = Words(example.words)
    features = TokenClassification().encode(tokenizer, prep, words, max_tokens=prep.max_tokens, truncation=CUT)
    word_classes = [_class(tag, classes, example) for tag in example.tags]
    return Row(features, first_token_targets(features, word_classes), example)


def _class(label: str, classes: dict[str, int], example: Example) -> int:
    if label not in classes:
        names = ", ".join(classes)
        raise InvalidData(f"{example.where}: found label {label!r}, wanted one of the training labels: {names}")
    return classes[label]
