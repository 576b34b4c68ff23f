"""Reads the head that the adapters library saves beside an adapter: one or two layers, or transformers' own head.

It refuses to know prefixes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefixbank.model_store.errors import NotRepresentable, SourceInvalid
from prefixbank.model_store.formats.foreign import Activation, ForeignHead, ModelPooler, TrainedPooler
from prefixbank.model_store.formats.heads import FIXED_CLASSES, TensorBag, checked_head, transformers_head
from prefixbank.model_store.formats.labels import from_label2id
from prefixbank.model_store.formats.source_config import SourceConfig, parse_config
from prefixbank.model_store.formats.source_files import read_json, read_tensors
from prefixbank.model_store.task_prompt import TaskFamily

if TYPE_CHECKING:
    from pathlib import Path

    from prefixbank.model_store.task_prompt import BackboneRef

CONFIG = "head_config.json"
WEIGHTS = ("model_head.safetensors", "pytorch_model_head.bin")
_FAMILIES = {
    "classification": TaskFamily.TEXT_CLASSIFICATION,
    "tagging": TaskFamily.TOKEN_CLASSIFICATION,
    "question_answering": TaskFamily.QUESTION_ANSWERING,
    "multiple_choice": TaskFamily.MULTIPLE_CHOICE,
}
_MODEL_FAMILIES = {
    "ForSequenceClassification": TaskFamily.TEXT_CLASSIFICATION,
    "ForTokenClassification": TaskFamily.TOKEN_CLASSIFICATION,
    "ForQuestionAnswering": TaskFamily.QUESTION_ANSWERING,
}
_POOLED = (TaskFamily.TEXT_CLASSIFICATION, TaskFamily.MULTIPLE_CHOICE)
_ACTIVATIONS: dict[str, Activation] = {"tanh": "tanh", "gelu": "gelu"}


class _Flexible(SourceConfig):
    """A head of the library's own, as it builds them: dropout, linear, activation, layer by layer."""

    head_type: str
    layers: int = 1
    activation_function: str | None = None
    use_pooler: bool = False
    bias: bool = True
    num_labels: int | None = None
    label2id: dict[str, int] | None = None


class _Config(SourceConfig):
    config: dict[str, Any] | None
    model_class: str = ""
    name: str | None = None
    label2id: dict[str, int] | None = None


def read_head(folder: Path, ref: BackboneRef) -> tuple[ForeignHead, tuple[str, ...] | None]:
    """The head beside an adapter, and the labels that it names.

    Raises:
        SourceInvalid, SourceUnreadable: there is none, or it contradicts itself.
        NotRepresentable: it has no equal here.
    """
    if not (folder / CONFIG).exists():
        raise SourceInvalid(f"{folder} holds no {CONFIG}: save the adapter with with_head=True")
    config = parse_config(_Config, read_json(folder / CONFIG), folder / CONFIG)
    bag = TensorBag(read_tensors(folder, WEIGHTS), folder.name)
    if config.config is None:
        head, label2id = transformers_head(bag, _model_family(config), ref), config.label2id
    else:
        flexible = parse_config(_Flexible, config.config, folder / CONFIG)
        layers = TensorBag(bag.take_below(f"heads.{config.name}."), folder.name)
        head, label2id = _flexible_head(layers, flexible, ref), flexible.label2id
        if flexible.num_labels not in (None, len(head.classifier.bias)) and head.family not in FIXED_CLASSES:
            found = f"num_labels is {flexible.num_labels}; the head has {len(head.classifier.bias)} classes"
            raise SourceInvalid(f"{folder / CONFIG}: {found}")
        layers.check_empty()
    bag.check_empty()
    return head, from_label2id(label2id) if label2id else None


def _model_family(config: _Config) -> TaskFamily:
    for suffix, family in _MODEL_FAMILIES.items():
        if config.model_class.endswith(suffix):
            return family
    raise NotRepresentable(f"the head of {config.model_class[:80]!r} has no equal here")


def _flexible_head(bag: TensorBag, config: _Flexible, ref: BackboneRef) -> ForeignHead:
    """One layer is the classifier; of two the first is a pooler with the head's activation."""
    if config.head_type not in _FAMILIES:
        raise NotRepresentable(f"a head of type {config.head_type[:80]!r}; known: {', '.join(_FAMILIES)}")
    family, bare = _FAMILIES[config.head_type], not config.bias
    if config.layers == 1:
        pooler = ModelPooler(None) if config.use_pooler else None
        return checked_head(ForeignHead(family, bag.take_dense("1", bias_may_lack=bare), pooler), ref)
    if config.layers != 2 or family not in _POOLED or config.use_pooler:
        behind = " behind the model's pooler" if config.use_pooler else ""
        raise NotRepresentable(f"a {config.head_type} head of {config.layers} layers{behind} has no equal here")
    if config.activation_function not in _ACTIVATIONS:
        raise NotRepresentable(f"a head with activation {config.activation_function!r}; known: tanh, gelu")
    first = TrainedPooler(bag.take_dense("1", bias_may_lack=bare), _ACTIVATIONS[config.activation_function])
    return checked_head(ForeignHead(family, bag.take_dense("4", bias_may_lack=bare), first), ref)
