"""Reads a folder of PEFT: prompts in every layer or at the input, and says why not for what has no equal here.

PEFT folds its own projection when it saves, so a prefix lies there as keys and values in P-tuning-v2's layout, and a
prompt at the input as vectors; position offset P. The folder names its backbone and does not hold it. It refuses to
know PEFT itself: it reads files.

Shape letters: P prefix tokens, X = 2LHD, M model width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from prefixbank.model_store.errors import BackboneMismatch, NotRepresentable, SourceInvalid
from prefixbank.model_store.formats.foreign import ForeignPrompt, Format
from prefixbank.model_store.formats.heads import TensorBag, transformers_head
from prefixbank.model_store.formats.peft_shallow import KINDS, MULTITASK, check_family, shallow_prompt
from prefixbank.model_store.formats.prefix_layout import split_flat
from prefixbank.model_store.formats.source_config import SourceConfig, parse_config
from prefixbank.model_store.formats.source_files import read_json, read_tensors
from prefixbank.model_store.task_prompt import TaskFamily

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import JsonValue
    from torch import Tensor

    from prefixbank.model_store.formats.foreign import ForeignHead
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
PREFIXED = ("bert", "roberta", "xlm-roberta", "electra")
"""Architectures whose forward takes past_key_values, as PEFT's prefix tuning needs."""
TYPED = ("bert", "electra")
"""Of those, the ones that tell the question from its text by token types."""
_DEEP = ("PREFIX_TUNING", "CARTRIDGE")


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


def read(folder: Path, ref: BackboneRef, task: int | None = None) -> ForeignPrompt:
    """The prompt in a folder of PEFT.

    Args:
        task: which of a multitask prompt's.

    Raises:
        FormatError: the subclass that says what is wrong with it, or why it cannot be served.
        BackboneMismatch: its shapes are another backbone's.
    """
    config = parse_config(_Config, read_json(folder / CONFIG), folder / CONFIG)
    _check_method(config, task, ref)
    family = _family(config)
    bag = TensorBag(read_tensors(folder, WEIGHTS), folder.name)
    model = TensorBag(bag.take_below(MODEL), folder.name)
    foreign = _prompt(bag, _embeddings(bag, config), transformers_head(model, family, ref), config, task, ref)
    bag.check_empty()
    model.check_empty()
    return foreign


def _prompt(
    bag: TensorBag, embeddings_PX: Tensor, head: ForeignHead, config: _Config, task: int | None, ref: BackboneRef
) -> ForeignPrompt:
    """The prompt as keys and values of every layer, or as vectors before the text, of which a pooled head reads one."""
    _check_sizes(config, ref)
    nothing = embeddings_PX.new_zeros(0, 2, ref.num_heads, 0, ref.head_dim)
    facts: dict[str, JsonValue] = {"peft_type": config.peft_type, "revision": config.revision}
    prompt = ForeignPrompt(
        format=Format.PEFT,
        method=f"PEFT {config.peft_type}",
        layers=(),
        kv_N2HPD=nothing,
        position_offset=len(embeddings_PX),
        head=head,
        made_for=config.base_model_name_or_path or "",
        software={"peft": config.peft_version} if config.peft_version else {},
        facts=facts | ({} if task is None else {"task": task}),
    )
    if config.peft_type in _DEEP:
        check_types(head.family, ref)
        layers = tuple(range(ref.num_layers))
        return replace(prompt, layers=layers, kv_N2HPD=split_flat(embeddings_PX, len(layers), ref))
    check_family(head.family, config.peft_type)
    is_pooled = head.family is TaskFamily.TEXT_CLASSIFICATION
    return replace(
        prompt,
        shallow_PM=shallow_prompt(bag, embeddings_PX, config.peft_type, task, ref),
        head=replace(head, pools="prompt" if is_pooled else "text"),
    )


def check_types(family: TaskFamily, ref: BackboneRef) -> None:
    """Refuse a prefix for questions where PEFT takes the token types away: its model for questions passes none on."""
    if family is TaskFamily.QUESTION_ANSWERING and ref.architecture in TYPED:
        raise NotRepresentable(
            f"PEFT prefix tuning of {ref.architecture} for questions: it gives question and text the same token type, "
            f"which no prompt here does"
        )


def _check_method(config: _Config, task: int | None, ref: BackboneRef) -> None:
    """Refuse methods that are no prompt of an encoder's own layers or input."""
    if config.peft_type not in (*_DEEP, *KINDS):
        raise NotRepresentable(
            f"PEFT {config.peft_type[:80]}: it is no prompt, but changes the backbone's own weights or layers"
        )
    if config.peft_type in _DEEP and ref.architecture not in PREFIXED:
        known = ", ".join(PREFIXED)
        raise BackboneMismatch(f"PEFT has no {config.peft_type} of {ref.architecture!r}, the backbone; it has {known}")
    if task is not None and config.peft_type != MULTITASK:
        raise SourceInvalid(f"task {task} was chosen, and a source of PEFT {config.peft_type} holds one")
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
    if len(found) != 2 or not found[0] or wanted not in (None, found[0]):
        raise SourceInvalid(f"{EMBEDDINGS} is {found}; num_virtual_tokens is {wanted}")
    return embeddings_PX


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
