"""Sources of other tools, made small, and what a task prompt answers in fp64, to be compared with what they answer.

The fp64 forward runs the served packed path, the seam included, so that 1e-6 is about formulas and not about rounding.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from transformers import AutoModel, DynamicCache
from transformers.utils import logging as transformers_logging

from prefixbank.model_store.backbones.packing import PackRow
from prefixbank.model_store.task_prompt import Pooler, TaskFamily
from tests.tiny import prompt_pools

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.task_prompt import TaskPrompt

TEXT, WORDS = TaskFamily.TEXT_CLASSIFICATION, TaskFamily.TOKEN_CLASSIFICATION
SPANS, CHOICES = TaskFamily.QUESTION_ANSWERING, TaskFamily.MULTIPLE_CHOICE
POOLED = (TEXT, CHOICES)
PARITY = 1e-6
LENGTHS = (4, 30, 11)
PREFIX = 6
_SUFFIXES = {
    TEXT: "SequenceClassification",
    WORDS: "TokenClassification",
    SPANS: "QuestionAnswering",
    CHOICES: "MultipleChoice",
}


def random_ids(vocabulary: int = 120, lengths: Sequence[int] = LENGTHS) -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(5, vocabulary, (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def exact_logits(prompt: TaskPrompt, backbone: Backbone, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """What the prompt answers, in fp64 from its fp32 numbers: [C] per row, or [T, C] where every token is read."""
    model, pooler = (copy.deepcopy(module).double() if module else None for module in (backbone.model, backbone.pooler))
    exact = dataclasses.replace(backbone, model=model, pooler=pooler, dtype=torch.float64)
    offset, virtual = prompt.position_offset, prompt.shallow_length
    packed = exact.pack([PackRow(row, [0] * len(row), 1, offset, prompt.prefix_length, virtual) for row in rows])
    prefix = dict(zip(prompt.layers, prompt.kv_N2HPD, strict=True))
    prefixes = prompt_pools([prefix], backbone.ref.num_layers, torch.float64) if prefix else exact.no_prefixes(2)
    virtual_VM = None if prompt.shallow_PM is None else prompt.shallow_PM.repeat(len(rows), 1)
    hidden_TM = exact.forward(packed, prefixes, virtual_VM)
    first = 0 if prompt.head.spec.pools == "prompt" else virtual
    return [_head(prompt, exact, row_TM[first:]) for row_TM in hidden_TM.split([virtual + len(row) for row in rows])]


def _head(prompt: TaskPrompt, backbone: Backbone, hidden_TM: Tensor) -> Tensor:
    head = prompt.head
    x = hidden_TM[:1] if prompt.family in POOLED else hidden_TM
    if head.spec.pooler is Pooler.BACKBONE:
        x = backbone.pooled(x)
    if head.spec.pooler is Pooler.OWN:
        assert head.pooler_weight_MM is not None
        assert head.pooler_bias_M is not None
        activation = {"tanh": torch.tanh, "gelu": functional.gelu}[str(head.spec.activation)]
        x = activation(functional.linear(x, head.pooler_weight_MM.double(), head.pooler_bias_M.double()))
    logits = functional.linear(x, head.weight_CM.double(), head.bias_C.double())
    return logits[0] if prompt.family in POOLED else logits


def assert_same(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    """Every row to 1e-6, and rows that differ from each other far more than that."""
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other.double(), atol=PARITY, rtol=0)
    assert (found[0].reshape(-1)[0] - found[1].reshape(-1)[0]).abs() > 100 * PARITY


class Published(nn.Module):
    """P-tuning-v2's model of a task, restated from its description: one unpadded row at a time.

    Keys and values of the prefix go before the row's own; positions begin at P; BERT and RoBERTa are pooled by the
    model's own pooler, which is random where the checkpoint has none.
    """

    def __init__(self, folder: Path, family: TaskFamily, classes: int, projected: int | None = None) -> None:
        super().__init__()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        base = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
        self.family, self.base_name, self.config = family, base.base_model_prefix, base.config
        flat = 2 * base.config.num_hidden_layers * base.config.hidden_size
        self.add_module(self.base_name, base)
        self.prefix_encoder = nn.Module()
        self.prefix_encoder.embedding = nn.Embedding(PREFIX, base.config.hidden_size if projected else flat)
        if projected:
            layers = nn.Linear(base.config.hidden_size, projected), nn.Tanh(), nn.Linear(projected, flat)
            self.prefix_encoder.trans = nn.Sequential(*layers)
        self.head_name = "qa_outputs" if family is SPANS else "classifier"
        self.add_module(self.head_name, nn.Linear(base.config.hidden_size, classes))
        self.projected = projected
        _randomise(self.prefix_encoder, 0.7)
        _randomise(self.get_submodule(self.head_name), 0.3)

    @property
    def base(self) -> Any:
        return self.get_submodule(self.base_name)

    @torch.no_grad()
    def logits(self, row: Sequence[int]) -> Tensor:
        """[C], or [S, C] where every token is read."""
        first = self.config.pad_token_id + 1 if self.base_name == "roberta" else 0
        output = self.base(
            input_ids=torch.tensor([row]),
            attention_mask=torch.ones(1, PREFIX + len(row), dtype=torch.int64),
            position_ids=torch.arange(len(row))[None] + first + PREFIX,
            past_key_values=self._past(),
        )
        hidden_SM = output.last_hidden_state[0]
        head = self.get_submodule(self.head_name)
        if self.family not in POOLED:
            return head(hidden_SM)
        dense = self.base.pooler.dense
        return head(torch.tanh(dense(hidden_SM[0])))

    def _past(self) -> DynamicCache:
        flat = self.prefix_encoder.embedding.weight
        flat = self.prefix_encoder.trans(flat) if self.projected else flat
        heads, layers = self.config.num_attention_heads, self.config.num_hidden_layers
        kv = flat.view(PREFIX, 2 * layers, heads, -1).permute(1, 2, 0, 3)[:, None]
        cache = DynamicCache(config=self.config)
        for layer in range(layers):
            cache.update(kv[2 * layer], kv[2 * layer + 1], layer)
        return cache

    def save(self, folder: Path, *, file: str = "pytorch_model.bin", **config: Any) -> Path:
        """A folder as Hugging Face's Trainer leaves it."""
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(self.state_dict(), folder / file)
        fields = {
            "architectures": [f"{self.base_name.capitalize()}PrefixFor{_SUFFIXES[self.family]}"],
            "model_type": self.config.model_type,
            "pre_seq_len": PREFIX,
            "prefix_projection": self.projected is not None,
            "prefix_hidden_size": self.projected or 512,
            "transformers_version": "4.11.3",
        }
        (folder / "config.json").write_text(json.dumps(fields | config))
        return folder


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    if path.suffix == ".safetensors":
        save_file(plain, path)
    else:
        torch.save(plain, path)


def _randomise(module: nn.Module, scale: float) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))


def edit_json(path: Path, **fields: Any) -> None:
    """Overwrite fields of a JSON object; None removes."""
    found = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in found.items() if value is not None}))
