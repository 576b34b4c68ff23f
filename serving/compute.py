"""From a packed batch to logits: one forward, then poolers and heads in fp32.

It refuses to know who asked and what a class means.

Shape letters: T packed tokens, N hidden states that heads read, K of them with one kind of pooler, M model width,
C classes of the widest head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from prefixbank.kernels.heads import apply_heads

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.serving.batch import Batch
    from prefixbank.serving.prompt_pool import PromptPool

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "gelu": functional.gelu}


@torch.inference_mode()
def compute_logits(batch: Batch, backbone: Backbone, pool: PromptPool) -> NDArray[np.float32]:
    """The logits [N, C] of a batch on the host; `batch.split` gives each row its own."""
    virtual_VM = pool.head_rows_QM.index_select(0, batch.virtual_rows_V) if batch.virtual_rows_V.numel() else None
    hidden_TM = backbone.forward(batch.tokens, pool.layer_prefixes, virtual_VM)
    read_NM = hidden_TM.index_select(0, batch.read_N)
    x_NM = read_NM.float()
    if batch.backbone_pooled_K.numel():
        pooled_KM = backbone.pooled(read_NM.index_select(0, batch.backbone_pooled_K))
        x_NM = x_NM.index_copy(0, batch.backbone_pooled_K, pooled_KM.float())
    if batch.lm_transformed_K.numel():
        assert backbone.lm_head is not None, "a prompt was loaded whose masked-LM head is missing. This is a bug."
        transformed_KM = backbone.lm_head.transform(read_NM.index_select(0, batch.lm_transformed_K))
        x_NM = x_NM.index_copy(0, batch.lm_transformed_K, transformed_KM.float())
    for activation, rows in batch.own_poolers.items():
        own_KM = x_NM.index_select(0, rows.index_K)
        # An own pooler is M more rows of the head arena.
        pooled_KM = ACTIVATIONS[activation](apply_heads(own_KM, pool.head_rows_QM, pool.head_bias_Q, rows.heads))
        x_NM = x_NM.index_copy(0, rows.index_K, pooled_KM)
    logits_NC = apply_heads(x_NM, pool.head_rows_QM, pool.head_bias_Q, batch.heads)
    logits: NDArray[np.float32] = logits_NC.cpu().numpy()
    return logits
