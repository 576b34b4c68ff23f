"""Examples: what readers make of a file's rows, one kind per family of tasks.

They refuse to know tokens, label numbers and backbones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


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


class AnswerSpan(NamedTuple):
    """A true answer: `text` stands at character `start` of the context."""

    text: str
    start: int

    @property
    def end(self) -> int:
        """The character after the last one."""
        return self.start + len(self.text)


@dataclass(frozen=True, slots=True)
class QuestionExample:
    """A question, the text to find its answer in, and the true answers."""

    question: str
    context: str
    answers: tuple[AnswerSpan, ...]
    """Empty where the text does not answer the question. Training takes the first."""
    name: str
    """The question's id in the file."""
    paragraph: int
    """Questions about the same context share it: they are no independent draws."""
    where: str


@dataclass(frozen=True, slots=True)
class PropositionExample:
    """The words of a sentence, one of its predicates, and an IOB2 tag of each word's role in it."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    """Roles as PropBank writes them: C- for further pieces of a torn argument, R- for references, V for the verb."""
    predicate: int
    """Index of the word."""
    sentence: int
    """Predicates of the same sentence share it: they are no independent draws."""
    where: str


@dataclass(frozen=True, slots=True)
class ChoicesExample:
    """A premise, what may follow it, and which of it does."""

    premise: str
    choices: tuple[str, ...]
    connector: str
    """Stands between premise and choice; may be empty."""
    right: int
    """Index of the choice."""
    where: str


Example = TextExample | WordsExample | QuestionExample | PropositionExample | ChoicesExample
