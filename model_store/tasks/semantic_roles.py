"""Semantic roles: the words of a sentence and one of its predicates to the predicate's arguments.

A row is the sentence, a separator and the target verb once more, as in P-tuning v2 (Liu et al., 2022, appendix):
`tokens [SEP] verb`. The separator is a word of its own: BERT's tokenizers know it as their special token, others
split it into pieces, as the published runs did. Labels are IOB2 on the first token of each word; separator and verb
at the end have none.
PropBank writes a further piece of a torn argument as C-X and a reference to an argument as R-X; arguments are put
together as srl-eval.pl of CoNLL-2005 does (Carreras and Màrquez, 2005).
It refuses to know devices, prompts and the wire; a row's logits come as numpy.

Shape letters: T tokens of the row, W words of the sentence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from prefixbank.model_store.errors import InputTooLong
from prefixbank.model_store.tasks.features import Alignment, Features, Truncation, Words, alignment_of
from prefixbank.model_store.tasks.request import RequestInputs, RequestParameters, parse_parameters, wrong_inputs
from prefixbank.model_store.tasks.rows import aligned_row
from prefixbank.model_store.tasks.spans import spans_of
from prefixbank.model_store.tasks.token_classification import word_tags

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from prefixbank.model_store.task_prompt import Preprocessing
    from prefixbank.model_store.tasks.tokenizer import TextTokenizer

Answer = list[dict[str, Any]]

VERB = "V"
"""The role of the predicate itself: given, so neither answered nor counted."""
CONTINUATION = "C-"
MAX_PREDICATES = 64
"""Rows that one sentence may become."""


class SemanticRolesParameters(RequestParameters):
    """What a request may ask for."""

    delimiter: str | None = None
    """Between words in the text that `start` and `end` refer to; a space when absent."""


class Predicates(NamedTuple):
    """A sentence, and which of its words are predicates."""

    words: tuple[str, ...]
    predicates: tuple[int, ...]
    delimiter: str = " "

    @property
    def num_characters(self) -> int:
        """How long the sentence is, as often as it is encoded."""
        return len(self.predicates) * self._length

    @property
    def num_repeated_characters(self) -> int:
        """The sentence stands in every row."""
        return (len(self.predicates) - 1) * self._length

    @property
    def _length(self) -> int:
        return sum(len(word) + 1 for word in self.words)


class Argument(NamedTuple):
    """A role and the runs of words that fill it: (first word, end), one run unless it is torn."""

    role: str
    parts: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False, slots=True)
class PredicateFeatures(Features):
    """The row of one predicate."""

    predicate: int = 0
    """Index of the word."""


@dataclass(frozen=True, slots=True)
class SemanticRoles:
    """The family's functions, and the settings of a task."""

    separator: str = "[SEP]"
    """Stands between the sentence and its verb."""

    is_token_level = True

    def num_outputs(self, labels: Sequence[str]) -> int:
        """Classes of the head: O, and B- and I- of every role, of its continuation and of its reference."""
        return len(labels)

    def parse_parameters(self, parameters: Mapping[str, object]) -> SemanticRolesParameters:
        """Validated parameters, or InvalidRequest."""
        return parse_parameters(SemanticRolesParameters, parameters)

    def parse_inputs(
        self, inputs: object, prep: Preprocessing, parameters: RequestParameters
    ) -> RequestInputs[Predicates]:
        """The sentences of a request: `{"words", "predicates"}` or a list of such; predicates are word numbers."""
        assert isinstance(parameters, SemanticRolesParameters)
        delimiter = " " if parameters.delimiter is None else parameters.delimiter
        if isinstance(inputs, list):
            return RequestInputs(tuple(_predicates(item, delimiter) for item in inputs), batched=True)
        return RequestInputs((_predicates(inputs, delimiter),), batched=False)

    def encode(
        self,
        tokenizer: TextTokenizer,
        prep: Preprocessing,
        item: Predicates,
        *,
        max_tokens: int,
        truncation: Truncation = Truncation.REFUSE,
    ) -> tuple[PredicateFeatures, ...]:
        """A row per predicate, in order. Trainer and server use the same.

        CUT keeps the first words that fit, or the last up to the predicate, and always the verb at the end.
        """
        return tuple(
            self._row(tokenizer, prep, item, predicate, max_tokens, truncation) for predicate in item.predicates
        )

    def encode_rows(
        self,
        tokenizer: TextTokenizer,
        prep: Preprocessing,
        item: Predicates,
        parameters: RequestParameters,
        *,
        max_tokens: int,
    ) -> tuple[PredicateFeatures, ...]:
        """The rows of one sentence as a request asks for them."""
        return self.encode(tokenizer, prep, item, max_tokens=max_tokens, truncation=parameters.when_too_long)

    def decode(
        self,
        logits: Sequence[NDArray[np.float32]],
        rows: Sequence[Features],
        labels: Sequence[str],
        parameters: RequestParameters,
    ) -> Answer:
        """The arguments of each predicate of one sentence from the logits [T, C] of their rows."""
        return [_frame(logits_TC, row, labels) for logits_TC, row in zip(logits, rows, strict=True)]

    def arrange(self, answers: list[Answer], parameters: RequestParameters, *, batched: bool) -> list[Answer] | Answer:
        """A list of frames per sentence of a batch; the bare list of a single one."""
        return answers if batched else answers[0]

    def _row(
        self,
        tokenizer: TextTokenizer,
        prep: Preprocessing,
        item: Predicates,
        predicate: int,
        max_tokens: int,
        truncation: Truncation,
    ) -> PredicateFeatures:
        suffix = (self.separator, item.words[predicate])
        try:
            words = Words((*item.words, *suffix), item.delimiter)
            row = aligned_row(tokenizer, prep, words, max_tokens=max_tokens, truncation=Truncation.REFUSE)
            return _without_suffix(row, item, predicate, slice(0, len(item.words)))
        except InputTooLong:
            if truncation is Truncation.REFUSE:
                raise
        room = max_tokens - len(tokenizer.split(suffix, add_prefix_space=prep.add_prefix_space))
        if room < max_tokens // 2:
            raise InputTooLong(f"inputs: the predicate and its separator take {max_tokens - room} of {max_tokens}")
        kept = _kept(tokenizer, prep, item, predicate, room)
        words = Words((*item.words[kept], *suffix), item.delimiter)
        row = aligned_row(tokenizer, prep, words, max_tokens=max_tokens, truncation=Truncation.CUT)
        return _without_suffix(row, item, predicate, kept)


def arguments_of(tags: Sequence[str]) -> tuple[Argument, ...]:
    """The arguments that IOB2 tags stand for, by their first word, as srl-eval.pl reads props.

    A run of C-X continues the last argument X before it; without one it is an argument X itself.
    """
    arguments: list[Argument] = []
    last: dict[str, int] = {}
    for kind, start, end in spans_of(tags):
        role = kind.removeprefix(CONTINUATION)
        if role != kind and role in last:
            place = last[role]
            arguments[place] = Argument(role, (*arguments[place].parts, (start, end)))
        else:
            last[role] = len(arguments)
            arguments.append(Argument(role, ((start, end),)))
    return tuple(arguments)


def _kept(tokenizer: TextTokenizer, prep: Preprocessing, item: Predicates, predicate: int, room: int) -> slice:
    """The words that fit: the first ones, or where those lack the predicate the ones that end with it."""
    right, left = (prep.model_copy(update={"truncation_side": side}) for side in ("right", "left"))
    first_words = aligned_row(tokenizer, right, Words(item.words), max_tokens=room, truncation=Truncation.CUT)
    last = max((word for word in alignment_of(first_words).word_ids if word is not None), default=0)
    if predicate < last:
        return slice(0, last)
    before = Words(item.words[: predicate + 1])
    last_words = aligned_row(tokenizer, left, before, max_tokens=room, truncation=Truncation.CUT)
    first = min((word for word in alignment_of(last_words).word_ids if word is not None), default=predicate)
    return slice(min(first + last_words.truncated, predicate), predicate + 1)


def _without_suffix(row: Features, item: Predicates, predicate: int, kept: slice) -> PredicateFeatures:
    """The row with an alignment to the sentence alone: separator and verb become special tokens of no word."""
    shown = alignment_of(row)
    shift = sum(len(word) + len(item.delimiter) for word in item.words[: kept.start])
    inside = tuple(word is not None and word < kept.stop - kept.start for word in shown.word_ids)
    alignment = replace(
        shown,
        text=item.delimiter.join(item.words),
        offsets=tuple(
            (start + shift, end + shift) if is_in else (0, 0)
            for (start, end), is_in in zip(shown.offsets, inside, strict=True)
        ),
        word_ids=tuple(
            word + kept.start if word is not None and is_in else None
            for word, is_in in zip(shown.word_ids, inside, strict=True)
        ),
        is_special=tuple(not is_in for is_in in inside),
        num_words=len(item.words),
    )
    truncated = row.truncated or kept != slice(0, len(item.words))
    return PredicateFeatures(row.token_ids, row.type_ids, truncated, alignment, predicate=predicate)


def _frame(logits_TC: NDArray[np.float32], row: Features, labels: Sequence[str]) -> dict[str, Any]:
    assert isinstance(row, PredicateFeatures), "a row without its predicate. This is a bug."
    alignment = alignment_of(row)
    tags, scores = word_tags(logits_TC, row, labels)
    words: dict[int, tuple[int, int]] = {}
    for word, (start, end) in zip(alignment.word_ids, alignment.offsets, strict=True):
        if word is not None:
            words[word] = (words[word][0] if word in words else start, end)
    arguments = [
        _answer(argument, alignment, words, scores) for argument in arguments_of(tags) if argument.role != VERB
    ]
    predicate = {"index": row.predicate, **_piece(alignment, words.get(row.predicate, (0, 0)))}
    return {"predicate": predicate, "arguments": arguments}


def _answer(
    argument: Argument, alignment: Alignment, words: Mapping[int, tuple[int, int]], scores: Sequence[float]
) -> dict[str, Any]:
    spans = [(words[first][0], words[end - 1][1]) for first, end in argument.parts]
    pieces = [_piece(alignment, span) for span in spans]
    covered = [scores[word] for first, end in argument.parts for word in range(first, end)]
    answer = {"role": argument.role, "score": sum(covered) / len(covered)}
    answer |= {"word": " ".join(piece["word"] for piece in pieces), "start": spans[0][0], "end": spans[-1][1]}
    return answer | {"parts": pieces} if len(pieces) > 1 else answer


def _piece(alignment: Alignment, span: tuple[int, int]) -> dict[str, Any]:
    return {"word": alignment.text[slice(*span)], "start": span[0], "end": span[1]}


def _predicates(item: object, delimiter: str) -> Predicates:
    if isinstance(item, dict) and sorted(item) == ["predicates", "words"]:
        words, predicates = item["words"], item["predicates"]
        if _are_words(words) and _are_predicates(predicates, words):
            return Predicates(tuple(words), tuple(predicates), delimiter)
    wanted = f"1 to {MAX_PREDICATES} numbers, from 0, of words that are not blank"
    raise wrong_inputs(item, f'{{"words": [texts], "predicates": [{wanted}]}}, or a list of such')


def _are_words(found: object) -> bool:
    return isinstance(found, list) and all(isinstance(word, str) for word in found)


def _are_predicates(found: object, words: Sequence[str]) -> bool:
    """A predicate has something to read; other words may be blank, as corpora have them."""
    return (
        isinstance(found, list)
        and 1 <= len(found) <= MAX_PREDICATES
        and all(type(place) is int and 0 <= place < len(words) and words[place].strip() for place in found)
    )
