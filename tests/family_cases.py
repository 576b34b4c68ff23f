"""One small data set per family, its items on a tiny tokenizer, and logits that answer them right or anyhow.

It refuses to know pytest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from prefixbank.model_store.task_prompt import AnsweringSpec, Preprocessing
from prefixbank.model_store.tasks import read_positions
from prefixbank.model_store.tasks.token_classification import NO_TARGET
from prefixbank.trainer.families.answers import Answers
from prefixbank.trainer.families.choices import ChoiceAnswers
from prefixbank.trainer.families.classification import Classification
from prefixbank.trainer.families.roles import Roles
from prefixbank.trainer.families.verbalizer import VerbalizedLabels, spelled
from prefixbank.trainer.families.words import WordLabels
from prefixbank.trainer.readers.examples import (
    AnswerSpan,
    ChoicesExample,
    Example,
    PropositionExample,
    QuestionExample,
    TextExample,
    WordsExample,
)
from tests.tiny import tiny_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from prefixbank.trainer.families import Family, Item

SCALE = 8.0
"""Of the logits of right answers: sure, and not so sure that a wrong one costs infinitely."""

TEXTS = [
    TextExample(("the film was a quiet joy", "from the first scene"), "good", "a:1"),
    TextExample(("a dull and tired plot", "badly acted"), "bad", "a:2"),
    TextExample(("I would not watch this again", "far too long"), "bad", "a:3"),
]
SENTENCES = [
    WordsExample(("Maria", "Lopez", "flew", "to", "Oslo"), ("B-PER", "I-PER", "O", "O", "B-LOC"), "b:1"),
    WordsExample(("the", "sky"), ("O", "O"), "b:4"),
]
CONTEXT = "Acme Ltd opened an office in Berlin and hired John Smith"
QUESTIONS = [
    QuestionExample("who was hired?", CONTEXT, (AnswerSpan("John Smith", CONTEXT.index("John")),), "q1", 0, "c: q1"),
    QuestionExample("where?", CONTEXT, (AnswerSpan("Berlin", CONTEXT.index("Berlin")),), "q2", 0, "c: q2"),
]
UNANSWERED = [*QUESTIONS, QuestionExample("why?", "what is the weather like in Paris", (), "q3", 1, "c: q3")]
PROPOSITIONS = [
    PropositionExample(
        ("play", "some", "music", "please", "turn"), ("B-V", "B-ARG1", "I-ARG1", "O", "B-C-ARG1"), 0, 0, "d:1"
    ),
    PropositionExample(("play", "some", "music", "please", "turn"), ("O", "O", "B-ARG0", "O", "B-V"), 4, 0, "d:1"),
]
PREMISES = [
    ChoicesExample("the film was long", ("I was tired", "I was in Oslo"), "so", 0, "e:1"),
    ChoicesExample("the lights were off", ("the sky is blue", "the film was on", "no"), "because", 1, "e:2"),
]


class Case(NamedTuple):
    """A family and its examples."""

    family: Family
    examples: Sequence[Example]
    score: str
    """The metric that is 1 when all is right."""

    @property
    def labels(self) -> tuple[str, ...]:
        return self.family.labels(self.examples, None)

    @property
    def prep(self) -> Preprocessing:
        return self.family.preprocessing(self.labels)

    def items(self, tokenizer: Tokenizer | None = None, *, training: bool = False) -> list[Item]:
        tokenizer = tokenizer or tiny_tokenizer("bert")
        return self.family.items(self.examples, self.labels, tokenizer, self.prep, training=training)


def case_of(name: str, **changes: Any) -> Case:
    """The case of a family, by its name."""
    if name == "verbalizer":
        spec = spelled("{text} and {text_pair}: {mask}", {"bad": "dull", "good": "joys"}, tiny_tokenizer("bert"))
        labels = VerbalizedLabels(32, ("bad", "good"), spec, ("a", "b"), num_mistakes=9, **changes)
        return Case(labels, TEXTS, "accuracy")
    if name == "unanswered":
        spec = AnsweringSpec(null_threshold=0.0, stride=4)
        return Case(Answers(18, spec, num_mistakes=9, **changes), UNANSWERED, "f1")
    cases = {
        "classification": Case(Classification(32, ("a", "b"), num_mistakes=9, **changes), TEXTS, "accuracy"),
        "words": Case(WordLabels(32, num_mistakes=9, **changes), SENTENCES, "span_f1"),
        "answers": Case(Answers(18, AnsweringSpec(stride=4), num_mistakes=9, **changes), QUESTIONS, "f1"),
        "roles": Case(Roles(32, num_mistakes=9, **changes), PROPOSITIONS, "role_f1"),
        "choices": Case(ChoiceAnswers(32, num_mistakes=9, **changes), PREMISES, "accuracy"),
    }
    return cases[name]


NAMES = ("classification", "words", "answers", "unanswered", "roles", "choices", "verbalizer")


def random_logits(case: Case, items: Sequence[Item], seed: int = 0) -> list[list[NDArray[np.float32]]]:
    """Logits of the right shapes."""
    random = np.random.default_rng(seed)
    outputs = case.family.task.num_outputs(case.labels)

    def one(row: Any) -> NDArray[np.float32]:
        positions = len(read_positions(case.family.task, row))
        shape = (positions, outputs) if case.family.task.is_token_level else (outputs,)
        return random.normal(size=shape).astype(np.float32)

    return [[one(row) for row in item.rows] for item in items]


def right_logits(name: str, case: Case, items: Sequence[Item]) -> list[list[NDArray[np.float32]]]:
    """Random logits with the right answers far above the others."""
    logits = random_logits(case, items)
    for rows, item in zip(logits, items, strict=True):
        if name == "classification":
            rows[0][item.targets[0]] += SCALE
        elif name == "choices":
            rows[item.targets[0]][0] += SCALE
        elif name == "verbalizer":
            for mask, column in enumerate(case.family.task.columns[item.targets[0]]):
                rows[0][mask, column] += SCALE
        elif name in ("words", "roles"):
            for t in np.flatnonzero(item.targets != NO_TARGET):
                rows[0][t, item.targets[t]] += SCALE
        else:
            for logits_T2, (start, end) in zip(rows, item.targets, strict=True):
                logits_T2[start, 0] += SCALE
                logits_T2[end, 1] += SCALE
    return logits
