"""Reads a folder of PEFT: PREFIX_TUNING and CARTRIDGE, and says why not for what has no equal here.

PEFT folds its own projection when it saves, so a prefix lies there as keys and values in P-tuning-v2's layout; position
offset P. The folder names its backbone and does not hold it. It refuses to know PEFT itself: it reads files.

Shape letters: P prefix tokens, X = 2LHD, M model width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from prefixbank.model_store.errors import BackboneMismatch, NotRepresentable, SourceInvalid
from prefixbank.model_store.formats.foreign import ForeignPrompt, Format
from prefixbank.model_store.formats.heads import TensorBag, transformers_head
from prefixbank.model_store.formats.prefix_layout import split_flat
from prefixbank.model_store.formats.source_config import SourceConfig, parse_config
from prefixbank.model_store.formats.source_files import read_json, read_tensors
from prefixbank.model_store.task_prompt import TaskFamily

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from prefixbank.model_store.task_prompt import BackboneRef

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
EMBEDDINGS = "prompt_embeddings"
MODEL = "base_model."
"""What PEFT puts before the names of the model it wraps."""
FAMILIES = {
    "SEQ_CLS": TaskFamily.TEXT_CLASSIFICATION,
    "TOKEN_CLS": TaskFamily.TOKEN_CLASSIFICATION,
    "QUESTION_ANS": TaskFamily.QUESTION_ANSWERING,
}
_DEEP, _SHALLOW = ("PREFIX_TUNING", "CARTRIDGE"), "PROMPT_TUNING"
_REASONS = {
    "P_TUNING": "its prompt is embedded at the input and passes through every layer: no keys and values to serve",
    "MULTITASK_PROMPT_TUNING": "its prompt is embedded at the input, one per task of several",
}


class _Config(SourceConfig):
    peft_type: str
    task_type: str | None = None
    num_virtual_tokens: int | None = None
    num_layers: int | None = None
    num_attention_heads: int | None = None
    token_dim: int | None = None
    num_transformer_submodules: int | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    peft_version: str | None = None


def read(folder: Path, ref: BackboneRef) -> ForeignPrompt:
    """The prompt in a folder of PEFT.

    Raises:
        FormatError: the subclass that says what is wrong with it, or why it cannot be served.
        BackboneMismatch: its shapes are another backbone's.
    """
    config = parse_config(_Config, read_json(folder / CONFIG), folder / CONFIG)
    _check_method(config)
    bag = TensorBag(read_tensors(folder, WEIGHTS), folder.name)
    embeddings_PX = _embeddings(bag, config)
    if config.peft_type == _SHALLOW:
        _refuse_shallow(embeddings_PX, ref)
    _check_sizes(config, ref)
    kv_L2HPD = split_flat(embeddings_PX, ref.num_layers, ref)
    model = TensorBag(bag.take_below(MODEL), folder.name)
    head = transformers_head(model, _family(config), ref)
    bag.check_empty()
    model.check_empty()
    return ForeignPrompt(
        format=Format.PEFT,
        method=f"PEFT {config.peft_type}",
        layers=tuple(range(ref.num_layers)),
        kv_N2HPD=kv_L2HPD,
        position_offset=kv_L2HPD.shape[3],
        head=head,
        made_for=config.base_model_name_or_path or "",
        software={"peft": config.peft_version} if config.peft_version else {},
        facts={"peft_type": config.peft_type, "revision": config.revision},
    )


def _check_method(config: _Config) -> None:
    """Refuse methods that are no keys and values of an encoder's own layers."""
    if config.peft_type not in (*_DEEP, _SHALLOW):
        reason = _REASONS.get(config.peft_type, "it is no prompt, but changes the backbone's own weights or layers")
        raise NotRepresentable(f"PEFT {config.peft_type[:80]}: {reason}")
    if (config.num_transformer_submodules or 1) != 1 or config.task_type == "SEQ_2_SEQ_LM":
        raise NotRepresentable(f"PEFT {config.peft_type} of an encoder-decoder; only encoders are served")


def _family(config: _Config) -> TaskFamily:
    if config.task_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise NotRepresentable(f"task_type {config.task_type!r} has no head that is served; known: {known}")
    return FAMILIES[config.task_type]


def _embeddings(bag: TensorBag, config: _Config) -> Tensor:
    embeddings_PX = bag.take(EMBEDDINGS)
    found, wanted = list(embeddings_PX.shape), config.num_virtual_tokens
    if len(found) != 2 or found[0] != (wanted or found[0]):
        raise SourceInvalid(f"{EMBEDDINGS} is {found}; num_virtual_tokens is {wanted}")
    return embeddings_PX


def _refuse_shallow(embeddings_PM: Tensor, ref: BackboneRef) -> NoReturn:
    """What PROMPT_TUNING has is checked already: P embeddings of the input. A task prompt has no field for them yet."""
    if embeddings_PM.shape[1] != ref.width:
        raise BackboneMismatch(f"{EMBEDDINGS} is {list(embeddings_PM.shape)}; this backbone takes [P, {ref.width}]")
    raise NotRepresentable(
        f"PEFT {_SHALLOW}: {len(embeddings_PM)} embeddings at the input; this version serves deep prompts only"
    )


def _check_sizes(config: _Config, ref: BackboneRef) -> None:
    sizes = {
        "num_layers": ref.num_layers,
        "num_attention_heads": ref.num_heads,
        "token_dim": ref.num_heads * ref.head_dim,
    }
    for name, wanted in sizes.items():
        found = getattr(config, name)
        if found is not None and found != wanted:
            raise BackboneMismatch(f"{name} is {found} in {CONFIG} and {wanted} in {ref.name or ref.architecture!r}")
