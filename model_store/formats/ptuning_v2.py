"""Reads a checkpoint of THUDM's P-tuning-v2: the whole model, in which only prefix encoder and head were trained.

The prefix is keys and values after the projections, its dropout the identity when it answers, its position offset P.
It refuses to know backbones beyond their shapes: whether the encoder in the file is the one served is for the importer.

Shape letters: P prefix tokens, X = 2LHD.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import AliasChoices, Field

from prefixbank.model_store.backbones.fingerprint import canonical_name
from prefixbank.model_store.errors import BackboneMismatch, NotRepresentable, SourceInvalid
from prefixbank.model_store.formats.foreign import (
    Activation,
    Dense,
    ForeignHead,
    ForeignPrompt,
    Format,
    ModelPooler,
    TrainedPooler,
)
from prefixbank.model_store.formats.heads import TensorBag, checked_head
from prefixbank.model_store.formats.labels import from_id2label
from prefixbank.model_store.formats.prefix_layout import fold, split_flat
from prefixbank.model_store.formats.source_config import SourceConfig, parse_config
from prefixbank.model_store.formats.source_files import read_json, read_tensors
from prefixbank.model_store.task_prompt import TaskFamily

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from prefixbank.model_store.task_prompt import BackboneRef

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
EMBEDDING = "prefix_encoder.embedding.weight"
SHALLOW = "prefix_encoder.weight"
MODEL_NAMES = {
    "bert": "bert",
    "roberta": "roberta",
    "xlm-roberta": "roberta",
    "deberta": "deberta",
    "deberta-v2": "deberta",
}
"""Architectures that P-tuning-v2 prompts, by the name under which its classes hold the encoder."""
_FAMILIES = {
    "ForSequenceClassification": TaskFamily.TEXT_CLASSIFICATION,
    "ForTokenClassification": TaskFamily.TOKEN_CLASSIFICATION,
    "ForQuestionAnswering": TaskFamily.QUESTION_ANSWERING,
    "ForMultipleChoice": TaskFamily.MULTIPLE_CHOICE,
}
_POOLED = (TaskFamily.TEXT_CLASSIFICATION, TaskFamily.MULTIPLE_CHOICE)
_CONTEXT_ACTIVATIONS: dict[str, Activation] = {"gelu": "gelu", "tanh": "tanh"}
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")
"""Counters that old versions of transformers saved with the weights."""


class _Config(SourceConfig):
    model_type: str = ""
    name_or_path: str | None = Field(None, validation_alias=AliasChoices("_name_or_path", "name_or_path"))
    architectures: tuple[str, ...] | None = None
    id2label: dict[str, str | int] | None = None
    problem_type: str | None = None
    pre_seq_len: int | None = None
    prefix_projection: bool = False
    pooler_hidden_act: str = "gelu"
    transformers_version: str = ""


def read(folder: Path, ref: BackboneRef, family: TaskFamily | None = None) -> ForeignPrompt:
    """The prompt in a checkpoint's folder.

    Args:
        family: of the task, where the folder has no config to say so.

    Raises:
        FormatError: the subclass that says what is wrong with it.
        BackboneMismatch: its shapes are another backbone's.
    """
    path = folder / CONFIG
    fields = read_json(path) if path.exists() else {}
    config = parse_config(_Config, fields, path)
    bag = TensorBag(read_tensors(folder, WEIGHTS), folder.name)
    model = _model_name(ref)
    _check_model(config, bag, model)
    kv_L2HPD = _prefix(bag, config, ref)
    frozen = {canonical_name(name, model): tensor for name, tensor in bag.take_below(f"{model}.").items()}
    pooler = {name: frozen.pop(name) for name in list(frozen) if name.startswith("pooler.")}
    if not frozen and config.model_type not in ("", ref.architecture):
        raise BackboneMismatch(f"the checkpoint is of a {config.model_type!r}; the backbone is a {ref.architecture!r}")
    head = _head(bag, TensorBag(pooler, folder.name), _family(config, bag, family), config, ref)
    bag.check_empty()
    return ForeignPrompt(
        format=Format.PTUNING_V2,
        method="P-tuning-v2",
        layers=tuple(range(ref.num_layers)),
        kv_N2HPD=kv_L2HPD,
        position_offset=kv_L2HPD.shape[3],
        head=head,
        labels=from_id2label(config.id2label) if config.id2label else None,
        frozen={name: tensor for name, tensor in frozen.items() if name not in _BUFFERS},
        config=fields,
        made_for=config.name_or_path or "",
        software={"transformers": config.transformers_version} if config.transformers_version else {},
        facts={"prefix_projection": config.prefix_projection},
    )


def _model_name(ref: BackboneRef) -> str:
    if ref.architecture not in MODEL_NAMES:
        known = ", ".join(sorted(MODEL_NAMES))
        raise NotRepresentable(f"P-tuning-v2 has no models of {ref.architecture!r}; it has {known}")
    return MODEL_NAMES[ref.architecture]


def _check_model(config: _Config, bag: TensorBag, model: str) -> None:
    """Refuse the checkpoint of another architecture, and the baseline that prompts the input only."""
    if SHALLOW in bag:
        raise NotRepresentable(
            f"{SHALLOW}: a checkpoint of P-tuning-v2's --prompt, which gives its input positions and norm twice: "
            f"no shallow prompt answers so"
        )
    if config.model_type and MODEL_NAMES.get(config.model_type) != model:
        raise BackboneMismatch(f"the checkpoint is of a {config.model_type!r}; the backbone is a {model!r}")
    if config.problem_type in ("regression", "multi_label_classification"):
        raise NotRepresentable(f"problem_type {config.problem_type!r}: no task family answers so")


def _family(config: _Config, bag: TensorBag, said: TaskFamily | None) -> TaskFamily:
    """What the config's architectures or the head's name tell, else what is said."""
    names = config.architectures or ()
    for suffix, family in _FAMILIES.items():
        if any(name.endswith(suffix) for name in names):
            return family
    if "qa_outputs.weight" in bag:
        return TaskFamily.QUESTION_ANSWERING
    if said is not None:
        return said
    raise SourceInvalid(
        f"{CONFIG} has architectures {list(names[:3])}, which tell no task family; say it with --family"
    )


def _prefix(bag: TensorBag, config: _Config, ref: BackboneRef) -> Tensor:
    """Keys and values [L, 2, H, P, D], a projection folded."""
    embedding_PX = bag.take(EMBEDDING)
    if config.pre_seq_len is not None and list(embedding_PX.shape[:1]) != [config.pre_seq_len]:
        raise SourceInvalid(f"{EMBEDDING} is {list(embedding_PX.shape)}; pre_seq_len is {config.pre_seq_len}")
    if "prefix_encoder.trans.0.weight" in bag:
        layers = bag.take_dense("prefix_encoder.trans.0"), bag.take_dense("prefix_encoder.trans.2")
        embedding_PX = fold(embedding_PX, layers, torch.tanh)
    elif config.prefix_projection:
        raise SourceInvalid("prefix_projection is true, and the checkpoint has no prefix_encoder.trans.*")
    return split_flat(embedding_PX, ref.num_layers, ref)


def _head(bag: TensorBag, pooler: TensorBag, family: TaskFamily, config: _Config, ref: BackboneRef) -> ForeignHead:
    name = "qa_outputs" if family is TaskFamily.QUESTION_ANSWERING else "classifier"
    read_through = _pooler(bag, pooler, config, ref) if family in _POOLED else None
    return checked_head(ForeignHead(family, bag.take_dense(name), read_through), ref)


def _pooler(bag: TensorBag, carried: TensorBag, config: _Config, ref: BackboneRef) -> TrainedPooler | ModelPooler:
    """BERT and RoBERTa read a frozen pooler, which RoBERTa checkpoints of today lack; DeBERTa trains its own."""
    if MODEL_NAMES[ref.architecture] == "deberta":
        if config.pooler_hidden_act not in _CONTEXT_ACTIVATIONS:
            raise NotRepresentable(f"a pooler with {config.pooler_hidden_act!r}; known: gelu, tanh")
        return TrainedPooler(bag.take_dense("pooler.dense"), _CONTEXT_ACTIVATIONS[config.pooler_hidden_act])
    dense: Dense | None = carried.take_dense("pooler.dense") if "pooler.dense.weight" in carried else None
    return ModelPooler(dense)
