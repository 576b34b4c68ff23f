"""Routes to one training step of a classifier: ours, the original implementation restated, PEFT, full fine-tuning.

All begin from one set of weights and learn from the same rows; dropouts are off. The original (THUDM/P-tuning-v2,
restated with transformers' cache): an embedding looked up per row, [B, P, 2 L M], keys and values concatenated to those
of the padded batch in every layer, eager attention with a mask; padded to the longest row, or to 128 as its script
says. With SDPA it is what transformers would make of it today. PEFT: PREFIX_TUNING around the same model with
transformers' default attention. Full fine-tuning is our own harness: packed rows, fp32 master weights. Ours compiled:
torch.compile around the feed-forward of each layer, for any number of tokens. It refuses to know times.

Shape letters: B rows, S padded tokens of a row, L layers, H heads, D head dim, M model width, P prefix tokens.
"""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, NamedTuple, Protocol

import peft
import torch
import transformers
from torch import nn
from transformers import AutoModel, DynamicCache

from benchmarks.training_rows import RECIPES
from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.backbones.sources import locate
from prefixbank.trainer.build import build
from prefixbank.trainer.deep_prompt import DeepPrompt
from prefixbank.trainer.heads import LinearHead
from prefixbank.trainer.pack import Pack
from prefixbank.trainer.progress import LogDisplay
from prefixbank.trainer.trial import StepShare

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from benchmarks.training_rows import Task
    from prefixbank.trainer.families import Item
    from prefixbank.trainer.trial import Trial

PREFIX, MOST_TOKENS, TEACHING_RATE = 20, 128, 1e-6
OURS, FULL, COMPILED = "packed, ours", "full fine-tuning, ours", "packed, ours, compiled"
LONGEST, PUBLISHED, SDPA = "padded to the longest", f"padded to {MOST_TOKENS}", "padded to the longest, SDPA"
PEFT = "PEFT, padded to the longest"
SETTINGS = (
    f"prompt.length={PREFIX}",
    "prompt.position_offset=length",
    "prompt.init=random",
    "head.pooler=backbone",
    "head.dropout=0.0",
    f"max_tokens={MOST_TOKENS}",
    *(f"optimiser.{name}_rate={TEACHING_RATE}" for name in ("prompt", "head", "backbone")),
    "optimiser.warmup=0.0",
    "optimiser.schedule=constant",
)
"""Of our recipe, so that all routes compute the same; a rate that moves nothing between the turns of two routes."""


class Gradients(NamedTuple):
    """What implementations are compared by, in one layout."""

    deepest: Tensor
    """Of the prompt [L, 2, H, P, D]; in full fine-tuning of the word embeddings, which lie under everything."""
    classifier: Tensor


class Route(Protocol):
    """One way to train."""

    def loss(self, rows: Sequence[Item]) -> Tensor: ...

    def gradients(self) -> Gradients: ...

    def trained(self) -> list[nn.Parameter]: ...

    def move(self, rows: Sequence[Item], loss: Tensor) -> None:
        """Clip, step, and forget the gradients."""


class Ours:
    """A trial alone in a pack; of a prompt, or of the whole backbone."""

    def __init__(self, trial: Trial, pack: Pack) -> None:
        self.trial = trial
        self.pack = pack

    def loss(self, rows: Sequence[Item]) -> Tensor:
        [loss] = self.pack.losses([self.trial], [self._share(rows)])
        return loss

    def gradients(self) -> Gradients:
        [part] = self.trial.parts
        assert isinstance(part.head, LinearHead)
        if isinstance(self.trial.prompt, DeepPrompt):
            deepest = self.trial.prompt.kv_N2HPD
        else:
            deepest = self.pack.backbone.model.get_input_embeddings().weight
        return Gradients(_grad(deepest), _grad(part.head.classifier.weight))

    def trained(self) -> list[nn.Parameter]:
        return list(self.trial.trained.values())

    def move(self, rows: Sequence[Item], loss: Tensor) -> None:
        self.trial.move(self._share(rows), float(loss), 0.0)

    def _share(self, rows: Sequence[Item]) -> StepShare:
        return StepShare(self.trial.parts[0], list(rows), torch.Generator())


class Padded(nn.Module):
    """transformers' model with a classifier on its pooler, over padded rows; nothing is frozen."""

    def __init__(self, encoder: nn.Module, classifier: nn.Linear, padded_to: int | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.classifier = copy.deepcopy(classifier)
        self.padded_to = padded_to
        self._optimiser: torch.optim.Optimizer | None = None

    def loss(self, rows: Sequence[Item]) -> Tensor:
        longest = self.padded_to or max(row.num_tokens for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        seen = torch.zeros(len(rows), longest, dtype=torch.int64)
        for number, row in enumerate(rows):
            ids[number, : row.num_tokens] = torch.tensor(row.rows[0].token_ids)
            seen[number, : row.num_tokens] = 1
        device = self.classifier.weight.device
        pooled = self.pooled(ids.to(device), seen.to(device))
        logits = self.classifier(pooled.to(self.classifier.weight.dtype))
        targets = torch.tensor([int(row.targets[0]) for row in rows], device=device)
        return nn.functional.cross_entropy(logits, targets)

    def pooled(self, ids: Tensor, seen: Tensor) -> Tensor:
        pooled: Tensor = self.encoder(input_ids=ids, attention_mask=seen).pooler_output
        return pooled

    def gradients(self) -> Gradients:
        return Gradients(_grad(self.encoder.get_input_embeddings().weight), _grad(self.classifier.weight))

    def trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def move(self, rows: Sequence[Item], loss: Tensor) -> None:
        if self._optimiser is None:
            self._optimiser = torch.optim.AdamW(self.trained(), lr=TEACHING_RATE, weight_decay=0.0, fused=True)
        nn.utils.clip_grad_norm_(self.trained(), 1.0)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)


class PTuningV2(Padded):
    """The original's prefix encoder around a frozen encoder."""

    def __init__(
        self, encoder: nn.Module, classifier: nn.Linear, kv_L2HPD: Tensor, padded_to: int | None = None
    ) -> None:
        super().__init__(encoder, classifier, padded_to)
        self.num_layers, _, self.heads, self.prefix, self.dim = kv_L2HPD.shape
        self.embedding = nn.Embedding.from_pretrained(_as_published(kv_L2HPD), freeze=False)

    def past(self, num_rows: int) -> DynamicCache:
        """Keys and values of every layer [B, H, P, D], the prompt looked up once per row."""
        numbers = torch.arange(self.prefix, device=self.embedding.weight.device)
        looked_up = self.embedding(numbers.expand(num_rows, -1))
        kv = looked_up.view(num_rows, self.prefix, self.num_layers * 2, self.heads, self.dim)
        layers = kv.to(self.encoder.dtype).permute(2, 0, 3, 1, 4).split(2)
        return DynamicCache([(kv_2BHPD[0], kv_2BHPD[1]) for kv_2BHPD in layers])

    def pooled(self, ids: Tensor, seen: Tensor) -> Tensor:
        mask = torch.cat([seen.new_ones(len(ids), self.prefix), seen], 1)
        past = self.past(len(ids))
        pooled: Tensor = self.encoder(input_ids=ids, attention_mask=mask, past_key_values=past).pooler_output
        return pooled

    def gradients(self) -> Gradients:
        by_row = _grad(self.embedding.weight).view(self.prefix, self.num_layers, 2, self.heads, self.dim)
        return Gradients(by_row.permute(1, 2, 3, 0, 4), _grad(self.classifier.weight))


class PeftPrefix(Padded):
    """PEFT's own prefix tuning of a frozen encoder."""

    def __init__(self, encoder: nn.Module, classifier: nn.Linear, kv_L2HPD: Tensor) -> None:
        config = peft.PrefixTuningConfig(
            task_type=peft.TaskType.FEATURE_EXTRACTION, num_virtual_tokens=kv_L2HPD.shape[3]
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
            super().__init__(peft.get_peft_model(encoder, config).eval(), classifier)
        self.shape = kv_L2HPD.shape
        with torch.no_grad():
            self.embedding.weight.copy_(_as_published(kv_L2HPD))

    @property
    def embedding(self) -> nn.Embedding:
        embedding: nn.Embedding = self.encoder.prompt_encoder["default"].embedding
        return embedding

    def gradients(self) -> Gradients:
        layers, _, heads, prefix, dim = self.shape
        by_row = _grad(self.embedding.weight).view(prefix, layers, 2, heads, dim)
        return Gradients(by_row.permute(1, 2, 3, 0, 4), _grad(self.classifier.weight))


class Workshop:
    """Makes any of the routes over one task; each has its own model, so that one can be made alone.

    Args:
        folder: of the backbone, or `minilm`.
    """

    def __init__(self, task: Task, folder: str) -> None:
        self.task = task
        self.folder = folder
        trial = task.trial()
        [part] = trial.parts
        assert isinstance(part.head, LinearHead)
        assert isinstance(trial.prompt, DeepPrompt)
        self.classifier = part.head.classifier
        self.kv_L2HPD = trial.prompt.kv_N2HPD.detach()

    def make(self, name: str) -> Route:
        """The route of this name."""
        kv = self.kv_L2HPD
        makers: dict[str, Callable[[], Route]] = {
            OURS: lambda: Ours(self.task.trial(), Pack(self.task.backbone)),
            LONGEST: lambda: PTuningV2(self._plain("eager"), self.classifier, kv),
            PUBLISHED: lambda: PTuningV2(self._plain("eager"), self.classifier, kv, MOST_TOKENS),
            SDPA: lambda: PTuningV2(self._plain("sdpa"), self.classifier, kv),
            PEFT: lambda: PeftPrefix(self._plain("sdpa"), self.classifier, kv),
            FULL: self._full,
            COMPILED: self._compiled,
        }
        return makers[name]()

    def exact(self, name: str) -> Route:
        """What the gradients of a route should be, in fp64."""
        encoder = self._plain("eager", torch.float64)
        if name == FULL:
            return Padded(encoder.requires_grad_(True), self.classifier).double()
        return PTuningV2(encoder, self.classifier, self.kv_L2HPD).double()

    def _plain(self, attention: str, dtype: torch.dtype | None = None) -> nn.Module:
        """transformers' own model with its pooler, frozen."""
        backbone = self.task.backbone
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        model = AutoModel.from_pretrained(
            locate(self.folder), dtype=dtype or backbone.dtype, attn_implementation=attention
        )
        plain: nn.Module = model.to(backbone.device).eval().requires_grad_(False)
        return plain

    def _compiled(self) -> Ours:
        """Ours over a backbone of its own, of which BERT's feed-forwards are compiled."""
        like = self.task.backbone
        backbone = load_backbone(self.folder, dtype=like.dtype, device=like.device)
        for layer in backbone.model.get_submodule(backbone.layers_path).children():
            layer.feed_forward_chunk = torch.compile(layer.feed_forward_chunk, dynamic=True)
        return Ours(self.task.trial(), Pack(backbone))

    def _full(self) -> Ours:
        """Our own fine-tuning: fp32 weights whatever the arithmetic, without a prompt, the head as everywhere."""
        task, like = self.task, self.task.backbone
        recipe = task.recipe_with(method="full", dtype=str(like.dtype).removeprefix("torch."))
        backbone = like if like.dtype == torch.float32 else load_backbone(self.folder, device=like.device)
        trial, pack = build(recipe, backbone, task.prepared, root=RECIPES, folder=None, display=LogDisplay())
        [part] = trial.parts
        assert isinstance(part.head, LinearHead)
        part.head.load_state_dict({f"classifier.{k}": v for k, v in self.classifier.state_dict().items()})
        return Ours(trial, pack)


def _as_published(kv_L2HPD: Tensor) -> Tensor:
    """[P, 2 L M]."""
    return kv_L2HPD.permute(3, 0, 1, 2, 4).reshape(kv_L2HPD.shape[3], -1).clone()


def _grad(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
