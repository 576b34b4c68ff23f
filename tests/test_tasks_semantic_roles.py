"""Semantic roles: the sentence with its verb appended, labels on first tokens, arguments put together again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from prefixbank.model_store.errors import InputTooLong, InvalidRequest
from prefixbank.model_store.task_prompt import Preprocessing
from prefixbank.model_store.tasks.features import Truncation
from prefixbank.model_store.tasks.semantic_roles import Predicates, SemanticRoles, arguments_of
from prefixbank.model_store.tasks.token_classification import NO_TARGET, first_token_targets, word_tags
from prefixbank.model_store.tasks.tokenizer import TextTokenizer
from prefixbank.trainer.readers.propositions import read_propositions
from tests.tiny import tiny_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from prefixbank.model_store.tasks.semantic_roles import PredicateFeatures

FAMILY = SemanticRoles()
SENTENCE = ("Maria", "Lopez", "flew", "from", "Madrid", "to", "xyz", "on", "Monday")
ITEM = Predicates(SENTENCE, (2,))
LABELS = ("O", "B-V", "B-A0", "I-A0", "B-A1", "I-A1", "B-C-A1", "I-C-A1", "B-R-A1")


@pytest.fixture(scope="module", params=["bert", "roberta", "xlm-roberta", "modernbert"])
def tokenizer(request: pytest.FixtureRequest) -> TextTokenizer:
    return TextTokenizer(tiny_tokenizer(request.param))


def encode(
    tokenizer: TextTokenizer, item: Predicates, max_tokens: int = 128, *, cut: bool = False, side: str = "right"
) -> tuple[PredicateFeatures, ...]:
    prep = Preprocessing(max_tokens=max_tokens, add_prefix_space=True, truncation_side=side)
    truncation = Truncation.CUT if cut else Truncation.REFUSE
    return FAMILY.encode(tokenizer, prep, item, max_tokens=max_tokens, truncation=truncation)


def logits_of(row: PredicateFeatures, tags: list[str]) -> np.ndarray:
    """A head that is sure of these tags."""
    logits = np.zeros((row.num_tokens, len(LABELS)), dtype=np.float32)
    for t in row.alignment.first_tokens:
        logits[t, LABELS.index(tags[row.alignment.word_ids[t]])] = 20
    return logits


def frames(row: PredicateFeatures, tags: str) -> dict[str, Any]:
    (frame,) = FAMILY.decode([logits_of(row, tags.split())], [row], LABELS, FAMILY.parse_parameters({}))
    return frame


def test_a_row_is_sentence_separator_verb(tokenizer: TextTokenizer) -> None:
    (row,) = encode(tokenizer, ITEM)
    words = tokenizer.split(SENTENCE, add_prefix_space=True).ids
    suffix = tokenizer.split(["[SEP]", "flew"], add_prefix_space=True).ids
    assert row.token_ids.tolist()[1:-1] == words + suffix
    assert set(row.type_ids.tolist()) == {0}


def test_bert_knows_the_separator_and_others_spell_it() -> None:
    rows = {kind: encode(TextTokenizer(tiny_tokenizer(kind)), ITEM)[0] for kind in ("bert", "roberta")}
    assert rows["bert"].token_ids.tolist().count(3) == 2
    assert rows["roberta"].token_ids.tolist().count(2) == 1


def test_only_first_tokens_of_the_sentence_have_targets(tokenizer: TextTokenizer) -> None:
    (row,) = encode(tokenizer, ITEM)
    targets = first_token_targets(row, list(range(1, 10)))
    assert [target for target in targets.tolist() if target != NO_TARGET] == list(range(1, 10))
    split = [tokenizer.split([word], add_prefix_space=True) for word in SENTENCE]
    assert [t for t, target in enumerate(targets) if target != NO_TARGET][:3] == [
        1, 1 + len(split[0]), 1 + len(split[0]) + len(split[1]),
    ]  # fmt: skip


def test_a_sentence_has_a_row_per_predicate(tokenizer: TextTokenizer) -> None:
    rows = encode(tokenizer, Predicates(SENTENCE, (2, 4)))
    assert [row.predicate for row in rows] == [2, 4]
    assert rows[0].token_ids.tolist() != rows[1].token_ids.tolist()


def test_arguments_come_back_with_their_place_in_the_text(tokenizer: TextTokenizer) -> None:
    (row,) = encode(tokenizer, ITEM)
    frame = frames(row, "B-A0 I-A0 B-V B-A1 I-A1 O B-C-A1 O B-R-A1")
    text = " ".join(SENTENCE)
    assert frame["predicate"] == {"index": 2, "word": "flew", "start": 12, "end": 16}
    assert [(found["role"], found["word"]) for found in frame["arguments"]] == [
        ("A0", "Maria Lopez"), ("A1", "from Madrid xyz"), ("R-A1", "Monday"),
    ]  # fmt: skip
    torn = frame["arguments"][1]
    assert [text[piece["start"] : piece["end"]] for piece in torn["parts"]] == ["from Madrid", "xyz"]
    assert (torn["start"], torn["end"]) == (text.index("from"), text.index("xyz") + 3)
    assert all(found["score"] == pytest.approx(1) for found in frame["arguments"])


def test_the_delimiter_moves_offsets_but_not_tokens(tokenizer: TextTokenizer) -> None:
    (row,), (spaced,) = encode(tokenizer, Predicates(SENTENCE, (2,), "")), encode(tokenizer, ITEM)
    assert row.token_ids.tolist() == spaced.token_ids.tolist()
    assert frames(row, "O O B-V B-A1 O O O O O")["arguments"][0]["start"] == len("MariaLopezflew")


def test_a_long_sentence_is_refused_unless_the_request_cuts_it(tokenizer: TextTokenizer) -> None:
    item = Predicates(SENTENCE * 30, (2,))
    with pytest.raises(InputTooLong, match=r"found \d+ tokens"):
        encode(tokenizer, item, 128)
    (row,) = encode(tokenizer, item, 128, cut=True)
    assert row.truncated
    assert row.num_tokens <= 128


@pytest.mark.parametrize("predicate", [2, 100, 269])
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_cut_keeps_the_predicate_and_the_verb_at_the_end(tokenizer: TextTokenizer, predicate: int, side: str) -> None:
    words = tuple(f"{word}{number}" for number, word in enumerate(SENTENCE * 30))
    item = Predicates(words, (predicate,))
    (row,) = encode(tokenizer, item, 128, cut=True, side=side)
    suffix = tokenizer.split(["[SEP]", words[predicate]], add_prefix_space=True).ids
    assert row.token_ids.tolist()[-len(suffix) - 1 : -1] == suffix
    kept = [word for word in row.alignment.word_ids if word is not None]
    assert predicate in kept
    assert row.num_tokens > 90
    for t, word in enumerate(row.alignment.word_ids):
        if word is not None:
            start, end = row.alignment.offsets[t]
            assert row.alignment.text[start:end].strip() in words[word]


def test_words_that_were_cut_have_no_role(tokenizer: TextTokenizer) -> None:
    item = Predicates(SENTENCE * 30, (2,))
    (row,) = encode(tokenizer, item, 128, cut=True)
    tags = ["B-A1"] * 270
    read, _ = word_tags(logits_of(row, tags), row, LABELS)
    kept = 1 + max(word for word in row.alignment.word_ids if word is not None)
    assert read == ["B-A1"] * kept + ["O"] * (270 - kept)
    found = FAMILY.decode([logits_of(row, tags)], [row], LABELS, FAMILY.parse_parameters({}))[0]
    assert len(found["arguments"]) == kept


def test_a_verb_that_fills_half_the_row_is_refused(tokenizer: TextTokenizer) -> None:
    with pytest.raises(InputTooLong, match="predicate and its separator take"):
        encode(tokenizer, Predicates(("a", "$_%_" * 20), (1,)), 64, cut=True)


@pytest.mark.parametrize(
    ("inputs", "items", "batched"),
    [
        ({"words": ["a", "b"], "predicates": [1]}, (Predicates(("a", "b"), (1,)),), False),
        ([{"words": ["a"], "predicates": [0]}], (Predicates(("a",), (0,)),), True),
        ({"words": ["a", "\u00a0"], "predicates": [0]}, (Predicates(("a", "\u00a0"), (0,)),), False),
    ],
)
def test_inputs_are_one_sentence_or_many(inputs: object, items: object, batched: bool) -> None:
    found = FAMILY.parse_inputs(inputs, Preprocessing(max_tokens=8), FAMILY.parse_parameters({}))
    assert found == (items, batched)


@pytest.mark.parametrize(
    "inputs",
    [
        "a b",
        {"words": ["a"]},
        {"words": "a", "predicates": [0]},
        {"words": ["a"], "predicates": []},
        {"words": ["a"], "predicates": [1]},
        {"words": ["a"], "predicates": [-1]},
        {"words": ["a"], "predicates": [True]},
        {"words": ["a", " "], "predicates": [1]},
        {"words": ["a"], "predicates": 0},
    ],
)
def test_inputs_of_another_form_are_refused(inputs: object) -> None:
    with pytest.raises(InvalidRequest, match=r"inputs: found .*, wanted \{\"words\""):
        FAMILY.parse_inputs(inputs, Preprocessing(max_tokens=8), FAMILY.parse_parameters({}))


def test_real_propositions_survive_the_way_there_and_back(shared_data: Path) -> None:
    tokenizer = TextTokenizer(tiny_tokenizer("bert"))
    path = shared_data / "srl" / "ewt_propbank" / "ewt_propbank_test.gold_conll"
    for row in read_propositions(path).rows[::40]:
        (features,) = encode(tokenizer, Predicates(row.words, (row.predicate,)), 512, cut=True)
        labels = sorted(set(row.tags))
        targets = first_token_targets(features, [labels.index(tag) for tag in row.tags])
        logits = np.eye(len(labels), dtype=np.float32)[np.maximum(targets, 0)]
        tags, _ = word_tags(logits, features, labels)
        assert features.truncated or arguments_of(tags) == arguments_of(row.tags)
