"""Writes a prompt as a P-tuning-v2 checkpoint without its backbone: prefix encoder and head.

`model.load_state_dict(torch.load("pytorch_model.bin"), strict=False)` puts it into a model that P-tuning-v2 has loaded
for this backbone. It refuses to know where the folder goes.

Shape letters: P prefix tokens, X = 2LHD.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import torch

from prefixbank.model_store.errors import NotRepresentable
from prefixbank.model_store.formats.exportable import check_deep, check_head
from prefixbank.model_store.formats.labels import carried_as
from prefixbank.model_store.formats.prefix_layout import join_flat
from prefixbank.model_store.formats.ptuning_v2 import CONFIG, EMBEDDING, MODEL_NAMES
from prefixbank.model_store.formats.sidecar import NAME, sidecar_bytes, spell
from prefixbank.model_store.task_prompt import Pooler, TaskFamily

if TYPE_CHECKING:
    from torch import Tensor

    from prefixbank.model_store.task_prompt import TaskPrompt

WEIGHTS_FILE = "pytorch_model.bin"
"""The only kind of file that its transformers, 4.11, reads."""
_TEXT, _WORDS = TaskFamily.TEXT_CLASSIFICATION, TaskFamily.TOKEN_CLASSIFICATION
_SPANS, _CHOICES = TaskFamily.QUESTION_ANSWERING, TaskFamily.MULTIPLE_CHOICE
_CLASSES = {
    ("bert", _TEXT): "BertPrefixForSequenceClassification",
    ("bert", _WORDS): "BertPrefixForTokenClassification",
    ("bert", _SPANS): "BertPrefixForQuestionAnswering",
    ("bert", _CHOICES): "BertPrefixForMultipleChoice",
    ("roberta", _TEXT): "RobertaPrefixForSequenceClassification",
    ("roberta", _WORDS): "RobertaPrefixForTokenClassification",
    ("roberta", _SPANS): "RobertaPrefixModelForQuestionAnswering",
    ("roberta", _CHOICES): "RobertaPrefixForMultipleChoice",
    ("deberta", _TEXT): "DebertaPrefixForSequenceClassification",
    ("deberta", _WORDS): "DebertaPrefixForTokenClassification",
    ("deberta", _SPANS): "DebertaPrefixModelForQuestionAnswering",
    ("deberta", _CHOICES): "DebertaPrefixForMultipleChoice",
    ("deberta-v2", _WORDS): "DebertaV2PrefixForTokenClassification",
}
"""P-tuning-v2's model classes: where there is none, there is nothing to load a checkpoint into."""


def files_of(prompt: TaskPrompt) -> dict[str, bytes]:
    """The folder's files by name.

    Raises:
        NotRepresentable: P-tuning-v2's model would answer otherwise.
    """
    if prompt.shallow_length:
        raise NotRepresentable("the prompt is shallow, and P-tuning-v2's own embed their input twice")
    check_head(prompt, "P-tuning-v2")
    check_deep(prompt, "P-tuning-v2")
    if (prompt.backbone.architecture, carried_as(prompt.family)) not in _CLASSES:
        raise NotRepresentable(f"P-tuning-v2 has no {prompt.family} model of {prompt.backbone.architecture}")
    tensors = {EMBEDDING: join_flat(prompt.kv_N2HPD)} | _head_tensors(prompt)
    file = io.BytesIO()
    torch.save({name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}, file)
    weights = file.getvalue()
    return {
        WEIGHTS_FILE: weights,
        CONFIG: spell(_config(prompt)),
        NAME: sidecar_bytes(prompt, WEIGHTS_FILE, weights),
    }


def _head_tensors(prompt: TaskPrompt) -> dict[str, Tensor]:
    head = prompt.head
    name = "qa_outputs" if prompt.family is _SPANS else "classifier"
    classifier = {f"{name}.weight": head.weight_CM, f"{name}.bias": head.bias_C}
    return classifier if carried_as(prompt.family) in (_WORDS, _SPANS) else classifier | _pooler_tensors(prompt)


def _pooler_tensors(prompt: TaskPrompt) -> dict[str, Tensor]:
    """An own pooler under the name of the one that the model reads; nothing for the backbone's."""
    head, model = prompt.head, MODEL_NAMES[prompt.backbone.architecture]
    if head.spec.pooler is Pooler.BACKBONE and model != "deberta":
        return {}
    wanted = "gelu" if model == "deberta" else "tanh"
    if head.pooler_weight_MM is None or head.pooler_bias_M is None or head.spec.activation != wanted:
        raise NotRepresentable(
            f"P-tuning-v2's {model} reads its first token through a dense layer and {wanted}; "
            f"this head has pooler {head.spec.pooler.value!r}, activation {head.spec.activation}"
        )
    name = "pooler.dense" if model == "deberta" else f"{model}.pooler.dense"
    return {f"{name}.weight": head.pooler_weight_MM, f"{name}.bias": head.pooler_bias_M}


def _config(prompt: TaskPrompt) -> dict[str, object]:
    """The fields that P-tuning-v2 adds to the backbone's config, and those that tell the shapes."""
    ref = prompt.backbone
    return {
        "architectures": [_CLASSES[ref.architecture, carried_as(prompt.family)]],
        "hidden_size": ref.width,
        "id2label": {str(number): label for number, label in enumerate(prompt.labels)},
        "label2id": {label: number for number, label in enumerate(prompt.labels)},
        "model_type": ref.architecture,
        "num_attention_heads": ref.num_heads,
        "num_hidden_layers": ref.num_layers,
        "pre_seq_len": prompt.prefix_length,
        "prefix_hidden_size": 512,
        "prefix_projection": False,
    }
