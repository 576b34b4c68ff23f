"""Shallow prompts, verbalizers and the settings of families: what is written is read, and each lie has its name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch

from prefixbank.model_store import artifact, errors
from prefixbank.model_store.task_prompt import (
    AnsweringSpec,
    HeadSpec,
    Pooler,
    Preprocessing,
    RolesSpec,
    TaskFamily,
    VerbalizerSpec,
)
from tests.prompt_cases import (
    NO_POOLER,
    OWN_POOLER,
    TINY,
    WORDS,
    Forger,
    forge,
    make_prompt,
    make_shallow,
    make_verbalizer,
    refused,
    same_prompt,
)

if TYPE_CHECKING:
    from prefixbank.model_store.task_prompt import TaskPrompt

EXAMPLES = Path(__file__).resolve().parent.parent / "examples" / "prompts"
SHIPPED = {
    "news/entities": "7fdebe9d9f2d5956eb77ca91a19031c5c16255e0d5ae47e20f5e3486c022147b",
    "qa/boolq": "f75a0cb9d5d684c2f65736f3d43b8c2b852c49536169c57eba971858c8e156e0",
    "shop/intents": "ade5d12584139d185f445c12b526411047d2da5e1edffafbd843afe21ffcd9de",
}


def _questions(**fields: Any) -> TaskPrompt:
    prep = Preprocessing(max_tokens=384, answering=AnsweringSpec(**fields) if fields else None)
    family, labels = TaskFamily.QUESTION_ANSWERING, ("start", "end")
    return make_prompt(spec=NO_POOLER, family=family, labels=labels, preprocessing=prep)


def _roles(separator: str) -> TaskPrompt:
    prep = Preprocessing(max_tokens=128, roles=RolesSpec(separator=separator))
    family, labels = TaskFamily.SEMANTIC_ROLES, ("O", "B-A0", "I-A0")
    return make_prompt(spec=NO_POOLER, family=family, labels=labels, preprocessing=prep)


def _words(**fields: Any) -> TaskPrompt:
    return make_verbalizer(verbalizer=WORDS.model_copy(update=fields))


def _peft_pooled(spec: HeadSpec = OWN_POOLER) -> TaskPrompt:
    return make_shallow(spec=spec.model_copy(update={"pools": "prompt"}))


HONEST = {
    "shallow": make_shallow(),
    "shallow in half": make_shallow(dtype=torch.float16),
    "shallow that eats positions": make_shallow(position_offset=6),
    "shallow, pooled as in PEFT": _peft_pooled(),
    "questions with the defaults": _questions(),
    "questions": _questions(stride=64, max_question_tokens=32, max_answer_tokens=15, num_best=5, null_threshold=-1.5),
    "questions without threshold": _questions(stride=0),
    "roles": _roles("</s>"),
    "roles alone": make_prompt(spec=NO_POOLER, family=TaskFamily.SEMANTIC_ROLES, labels=("O",)),
    "words": make_verbalizer(),
    "words of a shallow prompt": make_verbalizer(
        layers=(), prefix_length=0, shallow_PM=torch.zeros(2, TINY.width), position_offset=0
    ),
}


@pytest.mark.parametrize("prompt", HONEST.values(), ids=HONEST)
def test_a_prompt_reads_back_as_it_was_written(tmp_path: Path, prompt: TaskPrompt) -> None:
    digest = artifact.write(prompt, tmp_path / "artifact")
    read = artifact.read(tmp_path / "artifact", expect_digest=digest)
    assert same_prompt(read, prompt)
    assert artifact.seal(read).digest == digest


def test_every_new_field_changes_the_digest(tmp_path: Path) -> None:
    digests = {artifact.write(prompt, tmp_path / name) for name, prompt in HONEST.items()}
    assert len(digests) == len(HONEST)


def test_a_shallow_prompt_is_a_tensor_of_vectors(tmp_path: Path) -> None:
    prompt = make_shallow(length=3)
    artifact.write(prompt, tmp_path / "artifact")
    tensors = safetensors.torch.load_file(tmp_path / "artifact" / "prompt.safetensors")
    assert torch.equal(tensors["prompt.embeddings"], prompt.shallow_PM)
    assert (prompt.shallow_length, prompt.prefix_length, "prefix.kv" in tensors) == (3, 0, False)


def test_a_head_of_words_has_a_row_per_distinct_token() -> None:
    twice = WORDS.model_copy(update={"token_ids": ((30, 9, 30), (9,))})
    assert (WORDS.outputs, WORDS.num_masks) == ((7, 30, 9), 2)
    assert (twice.outputs, twice.num_masks) == ((30, 9), 3)
    assert artifact.seal(make_verbalizer()).manifest.num_outputs == 3


def test_a_template_falls_into_pieces() -> None:
    assert WORDS.pieces == ("{text}", " It is ", "{mask}", ": ", "{text_pair}")


@pytest.mark.parametrize(("name", "digest"), SHIPPED.items())
def test_shipped_prompts_keep_their_bytes(name: str, digest: str) -> None:
    """All but the entities were written before the format knew shallow prompts and settings."""
    sealed = artifact.open_sealed(EXAMPLES / name, expect_digest=digest)
    again = artifact.seal(sealed.unseal())
    assert again.manifest_bytes == sealed.manifest_bytes
    assert again.header + again.payload == sealed.header + sealed.payload


def test_an_artifact_without_news_does_not_name_them() -> None:
    text = artifact.seal(make_prompt()).manifest_bytes
    news = (b"shallow", b"lm_digest", b"pools", b"answering", b"roles", b"verbalizer", b"embeddings")
    assert [name for name in news if name in text] == []


# lies


def _forge(tmp_path: Path, prompt: TaskPrompt, **fields: Any) -> Forger:
    forger = forge(tmp_path / "artifact", prompt)
    forger.edit_manifest(lambda manifest: manifest.update(fields))
    return forger


def test_a_prompt_that_is_deep_and_shallow(tmp_path: Path) -> None:
    refused(_forge(tmp_path, make_prompt(), shallow_length=4).folder, errors.PromptMismatch, "deep or shallow")
    with pytest.raises(errors.PromptMismatch):
        artifact.seal(make_prompt(shallow_PM=torch.zeros(4, TINY.width)))


@pytest.mark.parametrize("length", [0, 5, 7])
def test_a_shallow_prompt_of_another_length(tmp_path: Path, length: int) -> None:
    refused(_forge(tmp_path, make_shallow(), shallow_length=length).folder, errors.ManifestInvalid, "prompt.embeddings")


@pytest.mark.parametrize(
    ("vectors", "error"),
    [
        (torch.zeros(4, TINY.width + 1), errors.ManifestInvalid),
        (torch.zeros(0, TINY.width), errors.ManifestInvalid),
        (torch.zeros(TINY.width), errors.WrongShape),
        (torch.zeros(4, TINY.width, dtype=torch.float64), errors.WrongDtype),
        (torch.full((4, TINY.width), float("nan")), errors.NotFinite),
        (torch.full((4, TINY.width), 7e4), errors.OverflowsHalf),
    ],
)
def test_vectors_that_are_no_prompt(tmp_path: Path, vectors: torch.Tensor, error: type[errors.ArtifactError]) -> None:
    prompt = make_prompt(layers=(), prefix_length=0, shallow_PM=vectors)
    with pytest.raises(error) as caught:
        artifact.write(prompt, tmp_path / "artifact")
    assert caught.type is error


_ANSWERING, _ROLES = {"stride": 128}, {"separator": "[SEP]"}


@pytest.mark.parametrize(
    ("prompt", "settings"),
    [
        (make_prompt(), {"answering": _ANSWERING}),
        (make_prompt(), {"roles": _ROLES}),
        (_questions(), {"roles": _ROLES}),
        (_roles("|"), {"roles": None, "answering": _ANSWERING}),
        (_questions(), {"verbalizer": WORDS.model_dump()}),
    ],
)
def test_settings_of_another_family(tmp_path: Path, prompt: TaskPrompt, settings: dict[str, Any]) -> None:
    forger = forge(tmp_path / "artifact", prompt)
    forger.edit_manifest(lambda manifest: manifest["preprocessing"].update(settings))
    refused(forger.folder, errors.SettingsMismatch, "belongs to")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stride", -1),
        ("stride", True),
        ("max_question_tokens", 0),
        ("max_answer_tokens", 513),
        ("num_best", 0),
        ("num_best", 101),
        ("num_best", 1 << 40),
        ("null_threshold", "0"),
        ("window", 384),
    ],
)
def test_answering_outside_its_range(tmp_path: Path, name: str, value: object) -> None:
    forger = forge(tmp_path / "artifact", _questions(stride=64))
    forger.edit_manifest(lambda manifest: manifest["preprocessing"]["answering"].update({name: value}))
    refused(forger.folder, errors.ManifestInvalid, f"answering.{name}")


@pytest.mark.parametrize("separator", ["", "x" * 101, 7, None])
def test_a_separator_that_is_none(tmp_path: Path, separator: object) -> None:
    forger = forge(tmp_path / "artifact", _roles("|"))
    forger.edit_manifest(lambda manifest: manifest["preprocessing"].update(roles={"separator": separator}))
    refused(forger.folder, errors.ManifestInvalid, "separator")


@pytest.mark.parametrize(
    "template",
    [
        "",
        "It is.",
        "{text} {text_pair}",
        "{mask} {text}",
        "{mask} {text_pair}",
        "{mask} {text} {text_pair} {mask}",
        "{mask} {text} {text} {text_pair}",
        "{mask} {text} {text_pair} {premise}",
        "{mask} {text} {text_pair} }",
        "{mask} {text} {{text_pair}}",
    ],
)
def test_a_template_with_other_places(template: str) -> None:
    with pytest.raises(errors.VerbalizerMismatch, match="template"):
        artifact.seal(_words(template=template))


def test_a_template_of_two_texts_for_a_task_of_one() -> None:
    with pytest.raises(errors.VerbalizerMismatch, match="template"):
        artifact.seal(make_verbalizer(preprocessing=Preprocessing(max_tokens=64, verbalizer=WORDS)))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"words": ("bad",)}, "words has 1 entries for 2 labels"),
        ({"words": ("bad", "good", "fine")}, "words has 3"),
        ({"token_ids": ((7,), (30,), (9,))}, "token_ids has 3"),
        ({"token_ids": ((7, 9), (7, 9))}, "same tokens"),
        ({"token_ids": ((7,), tuple(range(64)))}, "64 masks"),
    ],
)
def test_words_that_do_not_speak_for_the_labels(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(errors.VerbalizerMismatch, match=match):
        artifact.seal(_words(**fields))


@pytest.mark.parametrize(
    "token_ids", [[[], [7]], [[-1], [7]], [[1 << 31], [7]], [["7"], [8]], [list(range(65)), [7]], [7, 8]]
)
def test_tokens_that_are_none(tmp_path: Path, token_ids: object) -> None:
    forger = forge(tmp_path / "artifact", make_verbalizer())
    forger.edit_manifest(lambda manifest: manifest["preprocessing"]["verbalizer"].update(token_ids=token_ids))
    refused(forger.folder, errors.ManifestInvalid, "token_ids")


def test_a_head_with_a_row_per_label_where_tokens_are_more() -> None:
    head = make_verbalizer().head
    few = type(head)(head.spec, head.weight_CM[:2], head.bias_C[:2])
    with pytest.raises(errors.ManifestInvalid, match=r"head\.bias"):
        artifact.seal(make_verbalizer(head=few))


@pytest.mark.parametrize(
    ("prompt", "head"),
    [
        (make_verbalizer(), {"pooler": "lm"}),
        (make_verbalizer(), {"pooler": "backbone"}),
        (make_verbalizer(), {"pooler": "own", "activation": "tanh"}),
        (make_verbalizer(), {"pooler": "none", "lm_digest": "cd" * 32}),
        (make_prompt(), {"pooler": "lm", "lm_digest": "cd" * 32}),
        (make_prompt(spec=NO_POOLER), {"pooler": "none", "lm_digest": "cd" * 32}),
        (make_prompt(spec=NO_POOLER), {"pooler": "none", "pools": "prompt"}),
        (_roles("|"), {"pooler": "lm", "lm_digest": "cd" * 32}),
        (_questions(), {"pooler": "none", "pools": "prompt"}),
        (make_verbalizer(), {"pooler": "none", "pools": "prompt"}),
    ],
)
def test_a_pooler_that_does_not_agree(tmp_path: Path, prompt: TaskPrompt, head: dict[str, Any]) -> None:
    refused(_forge(tmp_path, prompt, head=head).folder, errors.PoolerMismatch)


def test_a_head_that_pools_the_prompt_reads_one_token(tmp_path: Path) -> None:
    """A shallow prompt makes the lie likelier, not truer."""
    reads_prompt = {"pooler": "none", "pools": "prompt"}
    shallow = make_shallow(spec=NO_POOLER, family=TaskFamily.TOKEN_CLASSIFICATION)
    refused(_forge(tmp_path, shallow, head=reads_prompt).folder, errors.PoolerMismatch, "more than one token")


def test_a_verbalizer_may_read_hidden_states(tmp_path: Path) -> None:
    """Where a checkpoint has no transform, words are scored by their embeddings alone."""
    head = make_verbalizer().head
    bare = type(head)(HeadSpec(pooler=Pooler.NONE), head.weight_CM, head.bias_C)
    artifact.write(make_verbalizer(head=bare), tmp_path / "artifact")
    assert artifact.read(tmp_path / "artifact").head.spec.pooler is Pooler.NONE


def test_specs_are_checked_where_they_are_made() -> None:
    with pytest.raises(ValueError, match="token_ids"):
        VerbalizerSpec(template="{text} {mask}", words=("a",), token_ids=((),))
    with pytest.raises(ValueError, match="null_threshold"):
        AnsweringSpec(null_threshold=float("nan"))
