"""Extractive question answering: a question and a text to the spans that answer it.

The question stands first; a long text becomes windows that share `stride` tokens (Devlin et al., 2019, section 4.2).
A span scores the sum of its start and end logits, the best over the windows that hold it. The null answer scores the
sum at the first token, the least over the windows; it is given where it beats the best span by more than a threshold
tuned on validation rows. Answers have the shape of Hugging Face's question-answering pipeline, and `score` is the
softmax over the n best answers, the null answer (less its threshold) among them where it is allowed.

Differences from that pipeline, on purpose: scores of windows are compared before they are normalised; answers are not
stretched to whole words unless asked, because they are not when metrics are computed; nothing is cut unasked.
It refuses to know devices, prompts and the wire; a row's logits come as numpy.

Shape letters: T tokens of the row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from prefixbank.model_store.errors import InputTooLong, InvalidRequest
from prefixbank.model_store.task_prompt import MAX_ANSWER_TOKENS, MAX_BEST
from prefixbank.model_store.tasks.answer_spans import find_answers
from prefixbank.model_store.tasks.features import Alignment, Features, Text, Truncation, Words
from prefixbank.model_store.tasks.request import RequestInputs, RequestParameters, parse_parameters, wrong_inputs
from prefixbank.model_store.tasks.rows import CHARACTERS_PER_TOKEN, MAX_WINDOWS
from prefixbank.model_store.tasks.text_classification import softmax
from prefixbank.model_store.tasks.tokenizer import read_only

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from tokenizers import Encoding as TokenEncoding

    from prefixbank.model_store.task_prompt import Preprocessing
    from prefixbank.model_store.tasks.answer_spans import Candidate
    from prefixbank.model_store.tasks.features import TaskInput
    from prefixbank.model_store.tasks.tokenizer import TextTokenizer

Answer = list[dict[str, Any]]

LABELS = ("start", "end")
"""The two outputs of the head, in order."""

Count = Annotated[int, Field(ge=1)]


class QuestionAnsweringParameters(RequestParameters):
    """The pipeline's parameters, by its names."""

    top_k: Count | None = None
    """How many answers, best first, at most 100; 1 when absent."""
    doc_stride: Annotated[int, Field(ge=0)] | None = None
    """Tokens shared between neighbouring windows."""
    max_answer_len: Annotated[int, Field(ge=1, le=MAX_ANSWER_TOKENS)] | None = None
    """Longest answer in tokens."""
    max_seq_len: Count | None = None
    """Longest window in tokens; the task's when absent or longer."""
    max_question_len: Count | None = None
    """Longest question in tokens; a longer one is refused, or cut where `truncation` says so."""
    handle_impossible_answer: bool | None = None
    """Whether the null answer may be given; as the task was trained when absent."""
    align_to_words: bool | None = None
    """Stretch answers to whole words; false when absent."""


@dataclass(frozen=True, slots=True)
class QuestionAnswering:
    """The family's functions, and the settings of a task. The defaults are the published ones."""

    stride: int = 128
    """Tokens shared between neighbouring windows, at most half of what a window holds of the text."""
    max_question_tokens: int = 64
    max_answer_tokens: int = 30
    num_best: int = 20
    """Spans that share the probability."""
    null_threshold: float | None = None
    """How far the null answer must beat the best span; None where every question has an answer."""

    is_token_level = True

    def num_outputs(self, labels: Sequence[str]) -> int:
        """Start and end."""
        return len(LABELS)

    def parse_parameters(self, parameters: Mapping[str, object]) -> QuestionAnsweringParameters:
        """Validated parameters, or InvalidRequest."""
        return parse_parameters(QuestionAnsweringParameters, parameters)

    def parse_inputs(self, inputs: object, prep: Preprocessing, parameters: RequestParameters) -> RequestInputs[Text]:
        """The questions of a request's `inputs`: `{"question", "context"}` or a list of such."""
        if isinstance(inputs, list):
            return RequestInputs(tuple(map(_question_and_context, inputs)), batched=True)
        return RequestInputs((_question_and_context(inputs),), batched=False)

    def encode(
        self,
        tokenizer: TextTokenizer,
        prep: Preprocessing,
        item: TaskInput,
        *,
        max_tokens: int,
        truncation: Truncation = Truncation.REFUSE,
    ) -> Features:
        """One question as one row; a text of several windows is refused, or cut to the first of them."""
        parameters = QuestionAnsweringParameters(truncation=truncation is Truncation.CUT)
        first, *others = self.encode_rows(tokenizer, prep, item, parameters, max_tokens=max_tokens)
        if not others:
            return first
        if truncation is Truncation.REFUSE:
            raise InputTooLong(f"inputs: found {1 + len(others)} windows of {max_tokens} tokens, wanted one")
        return Features(first.token_ids, first.type_ids, True, first.alignment)

    def encode_rows(
        self,
        tokenizer: TextTokenizer,
        prep: Preprocessing,
        item: TaskInput,
        parameters: RequestParameters,
        *,
        max_tokens: int,
    ) -> tuple[Features, ...]:
        """The windows of one question and text, in order. Trainer and server use the same.

        Raises:
            InputTooLong: the question, or the text in MAX_WINDOWS windows, unless `truncation` cuts them.
            InvalidRequest: the stride leaves no step forward.
        """
        assert isinstance(parameters, QuestionAnsweringParameters)
        if isinstance(item, Words) or item.text_pair is None:
            raise wrong_inputs(list(item), _WANTED)
        most = min(max_tokens, parameters.max_seq_len or max_tokens)
        question, question_cut = self._question(tokenizer, prep, item.text, parameters)
        room = most - tokenizer.num_special_tokens(pair=True) - len(question)
        stride = _stride(parameters.doc_stride, self.stride, room, most)
        text, text_cut = _within(item.text_pair, most, parameters.when_too_long)
        context = tokenizer.split(text, add_prefix_space=prep.add_prefix_space)
        windows_cut = _is_cut(len(context), room, stride, parameters.when_too_long)
        context.truncate(room, stride=stride)
        # one by one: finished together, all windows but the first lose their type ids
        parts = [context, *context.overflowing][:MAX_WINDOWS]
        rows = [tokenizer.finish(question, part, add_prefix_space=prep.add_prefix_space) for part in parts]
        cut = question_cut or text_cut or windows_cut
        return tuple(_features(tokenizer, item.text_pair, row, truncated=cut) for row in rows)

    def decode(
        self,
        logits: Sequence[NDArray[np.float32]],
        rows: Sequence[Features],
        labels: Sequence[str],
        parameters: RequestParameters,
    ) -> Answer:
        """The best answers from the logits [T, 2] of one question's windows, as many as asked for."""
        assert isinstance(parameters, QuestionAnsweringParameters)
        top_k = min(parameters.top_k or 1, MAX_BEST)
        found = find_answers(
            logits,
            rows,
            max_answer_tokens=parameters.max_answer_len or self.max_answer_tokens,
            num_best=max(top_k, self.num_best),
            whole_words=bool(parameters.align_to_words),
        )
        choices = found.choices(self._null_threshold(parameters))
        logit_sums = np.array([choice.score for choice in choices])
        scores = softmax(logit_sums)
        best = np.argsort(-logit_sums, kind="stable")[:top_k]
        return [_answer(found.text, choices[place], float(scores[place])) for place in best]

    def arrange(self, answers: list[Answer], parameters: RequestParameters, *, batched: bool) -> Any:
        """One answer per question where one was asked for, otherwise a list; of a single question, no list around."""
        assert isinstance(parameters, QuestionAnsweringParameters)
        arranged = [answer[0] for answer in answers] if (parameters.top_k or 1) == 1 else answers
        return arranged if batched else arranged[0]

    def _null_threshold(self, parameters: QuestionAnsweringParameters) -> float | None:
        """The task's, unless the request allows or forbids the null answer."""
        match parameters.handle_impossible_answer:
            case True:
                return self.null_threshold or 0.0
            case False:
                return None
            case _:
                return self.null_threshold

    def _question(
        self, tokenizer: TextTokenizer, prep: Preprocessing, text: str, parameters: QuestionAnsweringParameters
    ) -> tuple[TokenEncoding, bool]:
        """The question's tokens, and whether some were cut."""
        most = parameters.max_question_len or self.max_question_tokens
        whole, cut = _within(text.lstrip(), most, parameters.when_too_long)
        tokens = tokenizer.split(whole, add_prefix_space=prep.add_prefix_space)
        if len(tokens) <= most:
            return tokens, cut
        if parameters.when_too_long is Truncation.REFUSE:
            raise InputTooLong(f"inputs.question: found {len(tokens)} tokens, this task takes at most {most}")
        tokens.truncate(most)
        return tokens, True


def _answer(text: str, choice: Candidate, score: float) -> dict[str, Any]:
    return {"score": score, "start": choice.start, "end": choice.end, "answer": text[choice.start : choice.end]}


def _stride(asked: int | None, usual: int, room: int, max_tokens: int) -> int:
    if room < 1:
        raise InputTooLong(f"inputs.question: it leaves no token of {max_tokens} for the context")
    stride = min(usual, room // 2) if asked is None else asked
    if stride >= room:
        raise InvalidRequest(f"parameters.doc_stride: found {stride}, wanted less than the {room} tokens of a window")
    return stride


def _within(text: str, max_tokens: int, truncation: Truncation) -> tuple[str, bool]:
    """The text, cut where so many characters could only be cut later: a megabyte must not cost a second."""
    limit = CHARACTERS_PER_TOKEN * max_tokens * MAX_WINDOWS
    if len(text) > limit and truncation is Truncation.REFUSE:
        raise InputTooLong(f"inputs: found {len(text)} characters, this task takes at most {limit}")
    return text[:limit], len(text) > limit


def _is_cut(num_tokens: int, room: int, stride: int, truncation: Truncation) -> bool:
    windows = 1 + -(-max(0, num_tokens - room) // (room - stride))
    if windows > MAX_WINDOWS and truncation is Truncation.REFUSE:
        raise InputTooLong(f"inputs: found {windows} windows of {room} tokens, at most {MAX_WINDOWS} are taken")
    return windows > MAX_WINDOWS


def _features(tokenizer: TextTokenizer, text: str, row: TokenEncoding, *, truncated: bool) -> Features:
    """One window; its alignment takes the question's tokens for special ones, since they are not of the text."""
    outside = tuple(sequence != 1 for sequence in row.sequence_ids)
    offsets = tuple((0, 0) if out else span for out, span in zip(outside, row.offsets, strict=True))
    word_ids = tuple(None if out else word for out, word in zip(outside, row.word_ids, strict=True))
    num_words = 1 + max((word for word in word_ids if word is not None), default=-1)
    alignment = Alignment(text, offsets, word_ids, outside, num_words, tokenizer)
    return Features(read_only(row.ids), read_only(row.type_ids), truncated, alignment)


_WANTED = '{"question": "...", "context": "..."} with texts that are not empty, or a list of such'


def _question_and_context(item: object) -> Text:
    if isinstance(item, dict) and sorted(item) == ["context", "question"]:
        question, context = item["question"], item["context"]
        if isinstance(question, str) and isinstance(context, str) and question.strip() and context.strip():
            return Text(question, context)
    raise wrong_inputs(item, _WANTED)
