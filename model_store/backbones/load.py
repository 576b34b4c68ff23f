"""Load a frozen backbone from a folder, a hub id, or the packaged MiniLM.

It checks that nothing is initialised at random and that every layer's attention goes through the seam. It refuses to
know prompts, tasks and batches.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from prefixbank.model_store.backbones.architectures import Architecture, architecture_of
from prefixbank.model_store.backbones.backbone import Backbone
from prefixbank.model_store.backbones.cpu_products import keep_bits_of_rows
from prefixbank.model_store.backbones.devices import check_present
from prefixbank.model_store.backbones.fingerprint import fingerprint
from prefixbank.model_store.backbones.lm_head import load_lm_head
from prefixbank.model_store.backbones.packing import PackRow
from prefixbank.model_store.backbones.seam import SEAM, SeamLayer, mark
from prefixbank.model_store.backbones.shape_caches import bound_shape_caches
from prefixbank.model_store.backbones.sources import locate, read_config, weight_files
from prefixbank.model_store.errors import BackboneError, UnsupportedBackbone
from prefixbank.model_store.task_prompt import BackboneRef
from prefixbank.model_store.tasks.tokenizer import mask_id_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def load_backbone(source: str, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Backbone:
    """Load the encoder of `source`: a folder, a hub id `owner/name[@revision]`, or `minilm`.

    Raises:
        UnsupportedBackbone: when its architecture does not go through the seam, or its files are of another format.
        BackboneError: when it cannot be found, or its checkpoint is not whole, or the device is not here.
    """
    if dtype not in DTYPES:
        raise BackboneError(f"a backbone is served in float32, bfloat16 or float16, not {dtype}")
    device = torch.device(device)
    check_present(device)
    keep_bits_of_rows()
    bound_shape_caches()
    folder = locate(source)
    architecture = architecture_of(read_config(folder))
    weight_files(folder)
    with _quiet_transformers():
        config = _load_config(folder)
        model, missing = _load_model(folder, config, dtype)
        tokenizer = _load_tokenizer(folder, config)
    names = set(model.state_dict()) - missing
    pooler = _take_pooler(model, missing, folder)
    for module in (model, pooler):
        if module is not None:
            _freeze(module, device)
    backbone = Backbone(
        ref=_reference(source, folder, architecture, config, names, model.base_model_prefix, tokenizer),
        tokenizer=tokenizer,
        positions=architecture.positions(config),
        dtype=dtype,
        device=device,
        model=model,
        pooler=pooler,
        has_token_types=architecture.has_token_types(config),
        layers_path=architecture.layers,
        mask_id=mask_id_of(tokenizer),
        lm_head=load_lm_head(weight_files(folder), config, model),
    )
    _mark_layers(model, architecture, config)
    _probe(backbone)
    return backbone


def _load_config(folder: Path) -> PreTrainedConfig:
    config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    config.output_attentions = False
    config.output_hidden_states = False
    config.return_dict = True
    config.chunk_size_feed_forward = 0
    return config


def _load_model(folder: Path, config: PreTrainedConfig, dtype: torch.dtype) -> tuple[PreTrainedModel, set[str]]:
    """Load the base model; return it with the names of the tensors that the checkpoint lacks."""
    try:
        model, report = AutoModel.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation=SEAM,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise BackboneError(f"the checkpoint in {folder} cannot be read: {error}") from error
    for name, stored, wanted in sorted(report["mismatched_keys"]):
        raise BackboneError(f"{name} in {folder} is {tuple(stored)}, wanted {tuple(wanted)}")
    return model, set(report["missing_keys"])


def _load_tokenizer(folder: Path, config: PreTrainedConfig) -> Tokenizer:
    """Load the tokenizer beside the weights; its file's padding and truncation are not obeyed.

    Raises:
        BackboneError: when there is none, or it has an id that the model has no embedding for.
    """
    tokenizer = _read_tokenizer(folder)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    if largest >= config.vocab_size:
        raise BackboneError(f"the tokenizer in {folder} has id {largest}; the model has {config.vocab_size} embeddings")
    return tokenizer


def _read_tokenizer(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if path.is_file():
        return Tokenizer.from_file(str(path))
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, use_fast=True).backend_tokenizer
    except (OSError, ValueError, ImportError) as error:
        raise BackboneError(f"{folder} holds no tokenizer that the fast backend can build: {error}") from error


def _take_pooler(model: PreTrainedModel, missing: set[str], folder: Path) -> nn.Module | None:
    """Take the pooler off the model, so that it is not run on every forward; None when the checkpoint has none.

    Raises:
        BackboneError: when the checkpoint lacks anything but the pooler.
    """
    pooler_names = {name for name in missing if name.startswith("pooler.")}
    if missing - pooler_names:
        raise BackboneError(f"the checkpoint in {folder} lacks {sorted(missing - pooler_names)}")
    pooler: nn.Module | None = getattr(model, "pooler", None)
    if pooler is not None:
        setattr(model, "pooler", None)  # noqa: B010 - the type of a module's attribute is a module
    return None if pooler_names else pooler


def _freeze(module: nn.Module, device: torch.device) -> None:
    module.to(device).eval().requires_grad_(False)


def _reference(
    source: str,
    folder: Path,
    architecture: Architecture,
    config: PreTrainedConfig,
    names: set[str],
    prefix: str,
    tokenizer: Tokenizer,
) -> BackboneRef:
    fields = {name: getattr(config, name) for name in architecture.config_fields}
    fields["model_type"] = config.model_type
    mark = fingerprint(fields, weight_files(folder), prefix=prefix, names=names, tokenizer=tokenizer)
    return BackboneRef(
        fingerprint=mark,
        architecture=config.model_type,
        name=source,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        width=config.hidden_size,
    )


def _mark_layers(model: PreTrainedModel, architecture: Architecture, config: PreTrainedConfig) -> None:
    layers = model.get_submodule(architecture.layers)
    windows = architecture.windows(config)
    for index, (layer, window) in enumerate(zip(layers.children(), windows, strict=True)):
        mark(layer.get_submodule(architecture.attention), SeamLayer(index, window))


def _probe(backbone: Backbone) -> None:
    """Run two short rows: raise unless every layer calls the seam once, in order, and shapes are as told."""
    tokens = backbone.pack([PackRow([5, 6, 7], [0, 0, 0]), PackRow([8, 9], [0, 0])])
    try:
        kv_L2HTD = backbone.key_values(tokens)
    except (TypeError, BackboneError) as error:
        architecture = backbone.ref.architecture
        raise UnsupportedBackbone(f"this {architecture} does not route its attention as known: {error}") from error
    wanted = (backbone.ref.num_layers, 2, backbone.ref.num_heads, 5, backbone.ref.head_dim)
    if tuple(kv_L2HTD.shape) != wanted:
        raise UnsupportedBackbone(f"keys and values are {tuple(kv_L2HTD.shape)}, wanted {wanted}")


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Turn transformers' progress bars and load report off for a while; what matters in them is raised."""
    verbosity = transformers_logging.get_verbosity()
    had_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
