"""Writes a prompt as a folder of PEFT, PREFIX_TUNING or PROMPT_TUNING, which `PeftModel.from_pretrained` loads.

It refuses to know where the folder goes.

Shape letters: P prefix tokens or vectors, X = 2LHD or the model's width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import safetensors.torch

from prefixbank.model_store.errors import NotRepresentable
from prefixbank.model_store.formats.exportable import check_deep, check_head, check_shallow
from prefixbank.model_store.formats.labels import carried_as
from prefixbank.model_store.formats.peft import CONFIG, EMBEDDINGS, FAMILIES, MODEL, PREFIXED, WEIGHTS, check_types
from prefixbank.model_store.formats.peft_shallow import PROMPT_TUNING, check_family
from prefixbank.model_store.formats.prefix_layout import join_flat
from prefixbank.model_store.formats.sidecar import NAME, sidecar_bytes, spell
from prefixbank.model_store.task_prompt import Pooler, TaskFamily

if TYPE_CHECKING:
    from torch import Tensor

    from prefixbank.model_store.task_prompt import TaskPrompt

_TASK_TYPES = {family: name for name, family in FAMILIES.items()}
_SHALLOW = (*PREFIXED, "distilbert")
"""Architectures whose classifiers in transformers are those that we have."""
_OUT_PROJ = {"roberta": "tanh", "xlm-roberta": "tanh", "electra": "gelu"}
"""Architectures whose text classifier in transformers is dense, this activation, out_proj."""


def files_of(prompt: TaskPrompt) -> dict[str, bytes]:
    """The folder's files by name.

    Raises:
        NotRepresentable: PEFT's model would answer otherwise.
    """
    check_head(prompt, "PEFT")
    embeddings_PX = _embeddings(prompt)
    head = _head_tensors(prompt)
    tensors = {EMBEDDINGS: embeddings_PX} | {f"{MODEL}{name}": tensor for name, tensor in head.items()}
    weights = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"format": "pt"})
    return {
        WEIGHTS[0]: weights,
        CONFIG: spell(_config(prompt, head)),
        NAME: sidecar_bytes(prompt, WEIGHTS[0], weights),
    }


def _embeddings(prompt: TaskPrompt) -> Tensor:
    """The prompt as PEFT stores it, if its model would answer as we do."""
    check = check_deep if prompt.shallow_PM is None else check_shallow
    check(prompt, "PEFT")
    architecture = prompt.backbone.architecture
    method, known = ("prefix", PREFIXED) if prompt.shallow_PM is None else ("prompt", _SHALLOW)
    if architecture not in known:
        raise NotRepresentable(f"PEFT has no {method} tuning of {architecture}; it has {', '.join(known)}")
    if carried_as(prompt.family) not in _TASK_TYPES:
        raise NotRepresentable(f"PEFT has no head for {prompt.family}")
    if prompt.shallow_PM is None:
        check_types(prompt.family, prompt.backbone)
        return join_flat(prompt.kv_N2HPD)
    check_family(carried_as(prompt.family), PROMPT_TUNING)
    return prompt.shallow_PM


def _head_tensors(prompt: TaskPrompt) -> dict[str, Tensor]:
    """The head by its names in transformers' model of the task."""
    head, architecture = prompt.head, prompt.backbone.architecture
    if prompt.family is TaskFamily.QUESTION_ANSWERING:
        return {"qa_outputs.weight": head.weight_CM, "qa_outputs.bias": head.bias_C}
    if carried_as(prompt.family) is TaskFamily.TOKEN_CLASSIFICATION:
        return {"classifier.weight": head.weight_CM, "classifier.bias": head.bias_C}
    if head.spec.activation is not None and head.spec.activation == _OUT_PROJ.get(architecture):
        out = {"classifier.out_proj.weight": head.weight_CM, "classifier.out_proj.bias": head.bias_C}
        return out | _pooler_tensors(prompt, "classifier.dense")
    if architecture == "bert" and head.spec.pooler is Pooler.BACKBONE:
        return {"classifier.weight": head.weight_CM, "classifier.bias": head.bias_C}
    if architecture == "bert" and head.spec.activation == "tanh":
        out = {"classifier.weight": head.weight_CM, "classifier.bias": head.bias_C}
        return out | _pooler_tensors(prompt, "bert.pooler.dense")
    pooler = f"{head.spec.pooler.value} pooler" + (f" ({head.spec.activation})" if head.spec.activation else "")
    raise NotRepresentable(f"transformers has no {architecture} text classifier behind {pooler}")


def _pooler_tensors(prompt: TaskPrompt, name: str) -> dict[str, Tensor]:
    weight, bias = prompt.head.pooler_weight_MM, prompt.head.pooler_bias_M
    assert weight is not None, "an own pooler without weights. This is a bug."
    assert bias is not None, "an own pooler without bias. This is a bug."
    return {f"{name}.weight": weight, f"{name}.bias": bias}


def _config(prompt: TaskPrompt, head: dict[str, Tensor]) -> dict[str, object]:
    """`adapter_config.json`, of keys that every version of PEFT knows."""
    trained = sorted({"pooler" if ".pooler." in name else name.partition(".")[0] for name in head})
    ref, length = prompt.backbone, prompt.shallow_length
    deep = {"encoder_hidden_size": ref.width, "peft_type": "PREFIX_TUNING", "prefix_projection": False}
    shallow = {"peft_type": PROMPT_TUNING, "prompt_tuning_init": "RANDOM", "prompt_tuning_init_text": None}
    return (shallow if length else deep) | {
        "auto_mapping": None,
        "base_model_name_or_path": ref.name,
        "inference_mode": True,
        "modules_to_save": trained,
        "num_attention_heads": ref.num_heads,
        "num_layers": ref.num_layers,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": length or prompt.prefix_length,
        "revision": None,
        "task_type": _TASK_TYPES[carried_as(prompt.family)],
        "token_dim": ref.num_heads * ref.head_dim,
    }
