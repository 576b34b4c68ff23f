"""A cloze is tokenised as transformers would tokenise it; only its texts give way; words at masks speak for labels."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models

from prefixbank.model_store.errors import BackboneError, InputTooLong, InvalidRequest, VerbalizerMismatch
from prefixbank.model_store.task_prompt import Preprocessing, VerbalizerSpec
from prefixbank.model_store.tasks.features import Features, Text, Truncation
from prefixbank.model_store.tasks.tokenizer import TextTokenizer
from prefixbank.model_store.tasks.verbalizer import Verbalizer, verbalizer_spec
from tests.tiny import SENTENCES, tiny_tokenizer

SINGLE = Preprocessing(max_tokens=64)
PAIR = Preprocessing(max_tokens=64, pair=True)
TEMPLATES = ("{text} It was {mask}.", "{mask}: {text}", "is '{text}' {mask}?", "{text}{mask}")
PAIR_TEMPLATE = "{text_pair}? {mask}, {text}"
KINDS = ("bert", "roberta", "xlm-roberta", "modernbert")


def raw(kind: str) -> Tokenizer:
    """A tokenizer whose mask swallows the space before it, as those of the hub do."""
    tokenizer = tiny_tokenizer(kind)
    if kind != "bert":
        tokenizer.add_special_tokens([AddedToken(mask_of(kind), lstrip=True, special=True)])
    return tokenizer


def mask_of(kind: str) -> str:
    return "<mask>" if "roberta" in kind else "[MASK]"


def tokenizer_of(kind: str) -> TextTokenizer:
    return TextTokenizer(raw(kind))


def spec(template: str, *words: tuple[int, ...]) -> VerbalizerSpec:
    token_ids = words or ((7,), (8,))
    return VerbalizerSpec(template=template, words=tuple(map(str, token_ids)), token_ids=token_ids)


def encode(
    tokenizer: TextTokenizer, template: str, *texts: str, masks: int = 1, max_tokens: int = 400, side: str = "right"
) -> Features:
    """The row of one text or two, cut where it is too long."""
    prep = Preprocessing(max_tokens=max_tokens, pair=len(texts) == 2, truncation_side=side)
    task = Verbalizer(spec(template, tuple(range(7, 7 + masks)), (5,)))
    return task.encode(tokenizer, prep, Text(*texts), max_tokens=max_tokens, truncation=Truncation.CUT)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("masks", [1, 3])
def test_a_row_is_the_filled_template_as_transformers_tokenises_it(kind: str, template: str, masks: int) -> None:
    whole, tokenizer = raw(kind), tokenizer_of(kind)
    for sentence in SENTENCES:
        row = encode(tokenizer, template, sentence, masks=masks)
        wanted = whole.encode(template.format(text=sentence, mask=mask_of(kind) * masks))
        assert row.token_ids.tolist() == wanted.ids
        assert row.type_ids.tolist() == wanted.type_ids
        assert row.reads is not None
        assert row.reads.tolist() == np.flatnonzero(np.array(wanted.ids) == tokenizer.mask_id).tolist()
        assert not row.truncated


@pytest.mark.parametrize("kind", KINDS)
def test_two_texts_stand_where_the_template_says(kind: str) -> None:
    row = encode(tokenizer_of(kind), PAIR_TEMPLATE, SENTENCES[0], SENTENCES[1])
    filled = PAIR_TEMPLATE.format(text=SENTENCES[0], text_pair=SENTENCES[1], mask=mask_of(kind))
    assert row.token_ids.tolist() == raw(kind).encode(filled).ids


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_in_the_text_is_not_read(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    row = encode(tokenizer, "{text} It was {mask}.", f"a {mask_of(kind)} film {mask_of(kind)}")
    assert row.reads is not None
    assert (row.token_ids == tokenizer.mask_id).sum() == 3
    assert row.reads.tolist() == [np.flatnonzero(row.token_ids == tokenizer.mask_id)[-1]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("max_tokens", [20, 17, 24])
def test_only_the_text_gives_way(kind: str, side: str, max_tokens: int) -> None:
    tokenizer, text = tokenizer_of(kind), " ".join(SENTENCES)
    row = encode(tokenizer, "so: {text} It was {mask}.", text, max_tokens=max_tokens, side=side)
    whole = raw(kind).encode(f"so: {text} It was {mask_of(kind)}.")
    places = [t for t, (_, end) in enumerate(whole.offsets) if len("so: ") < end <= len("so: ") + len(text)]
    room = max_tokens - (len(whole.ids) - len(places))
    cut = set(places[room:] if side == "right" else places[:-room])
    assert row.token_ids.tolist() == [token_id for t, token_id in enumerate(whole.ids) if t not in cut]
    assert row.num_tokens == max_tokens
    assert row.truncated
    assert row.reads is not None
    assert row.token_ids[row.reads].tolist() == [tokenizer.mask_id]


def test_the_longer_text_gives_way_first() -> None:
    tokenizer = tokenizer_of("bert")
    short, long = "the film was a joy", "dull " * 40
    for texts in ((short, long), (long, short)):
        row = encode(tokenizer, PAIR_TEMPLATE, *texts, max_tokens=24)
        tokens = [tokenizer.token(token_id) for token_id in row.token_ids]
        assert len(tokens) == 24
        assert " ".join(tokens).count("the film was a joy") == 1
        assert tokens.count("?") == tokens.count(",") == tokens.count("[MASK]") == 1


def test_a_text_of_a_megabyte_is_cut_before_it_is_tokenised() -> None:
    row = encode(tokenizer_of("bert"), "{text} It was {mask}.", "dull " * 200_000, max_tokens=32)
    assert row.num_tokens == 32
    assert row.truncated


def test_what_is_too_long_is_refused_unless_it_may_be_cut() -> None:
    tokenizer, task = tokenizer_of("bert"), Verbalizer(spec("{text} It was {mask}."))
    with pytest.raises(InputTooLong, match="found 26 tokens, this task takes at most 20"):
        task.encode(tokenizer, SINGLE, Text("dull " * 20), max_tokens=20)


def test_a_template_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(InputTooLong, match="found 6 tokens beside the texts, this task takes at most 5"):
        encode(tokenizer_of("bert"), "{text} It was {mask}.", "dull", max_tokens=5)


def test_a_pair_is_asked_for_where_the_task_takes_one() -> None:
    with pytest.raises(InvalidRequest, match="two texts"):
        Verbalizer(spec(PAIR_TEMPLATE)).encode(tokenizer_of("bert"), PAIR, Text("a"), max_tokens=20)


def test_a_tokenizer_without_mask_is_refused() -> None:
    tokenizer = TextTokenizer(Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")))
    with pytest.raises(BackboneError, match="no mask token"):
        Verbalizer(spec("{text} {mask}")).encode(tokenizer, SINGLE, Text("a"), max_tokens=20)


def test_a_label_scores_the_mean_of_its_words_tokens() -> None:
    """Words of two, one and two tokens; token 9 speaks for two of them, at different masks."""
    task = Verbalizer(spec("{text} {mask}", (9, 4), (6,), (4, 9)))
    assert task.num_outputs(["a", "b", "c"]) == 3  # tokens 9, 4, 6
    assert task.columns == ((0, 1), (2,), (1, 0))
    logits_KC = np.array([[1.0, 5.0, 2.5], [7.0, 2.0, -9.0]], dtype=np.float32)
    assert task.label_logits(logits_KC).tolist() == [(1 + 2) / 2, 2.5, (5 + 7) / 2]
    row = encode(tokenizer_of("bert"), "{text} {mask}", "dull")
    asked = task.parse_parameters({"function_to_apply": "none", "top_k": 2})
    answer = task.decode([logits_KC], [row], ["a", "b", "c"], asked)
    assert answer == [{"label": "c", "score": 6.0}, {"label": "b", "score": 2.5}]
    scores = [entry["score"] for entry in task.decode([logits_KC], [row], ["a", "b", "c"], task.parse_parameters({}))]
    assert sum(scores) == pytest.approx(1)


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_spelled_as_in_the_masks_place(kind: str) -> None:
    tokenizer, words = tokenizer_of(kind), ("dull", "New York")
    found = verbalizer_spec(tokenizer, "{text} It was {mask}.", words)
    assert found.words == words
    for word, token_ids in zip(words, found.token_ids, strict=True):
        filled = raw(kind).encode(f"a film It was {word}.", add_special_tokens=False).ids
        start = len(raw(kind).encode("a film It was", add_special_tokens=False).ids)
        assert filled[start : start + len(token_ids)] == list(token_ids)


def test_a_word_without_a_space_before_it_is_spelled_so() -> None:
    tokenizer = tokenizer_of("roberta")
    (with_space,), (without,) = (verbalizer_spec(tokenizer, t, ["film"]).token_ids for t in ("{text} {mask}", "{mask}"))
    assert tokenizer.token(with_space[0]).startswith("Ġ")
    assert not tokenizer.token(without[0]).startswith("Ġ")


@pytest.mark.parametrize("word", ["", "很好"])
def test_a_word_that_the_vocabulary_cannot_spell_is_refused(word: str) -> None:
    with pytest.raises(VerbalizerMismatch, match="no tokens for the word"):
        verbalizer_spec(tokenizer_of("bert"), "{text} {mask}", ["dull", word])
