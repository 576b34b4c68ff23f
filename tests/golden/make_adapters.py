"""Make `tests/golden/adapters`: tiny adapters of the `adapters` library, each with the logits that library gives.

    python -m venv golden && golden/bin/pip install adapters==1.3.0 transformers==4.57.6 torch safetensors
    golden/bin/python tests/golden/make_adapters.py

`adapters` wants transformers 4, which this project does not run on: so its answers lie here as files. Logits are
computed in fp64 from the saved fp32 numbers. Every weight is random and large, so that a wrong prefix shows in the
first digits.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import adapters
import torch
from adapters import AutoAdapterModel, PrefixTuningConfig
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForSequenceClassification

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parent / "adapters"
VOCABULARY, POSITIONS, LENGTHS = 40, 40, (4, 11, 7)
LABELS = {0: "bad", 1: "so-so", 2: "good"}


class Case(NamedTuple):
    """One saved adapter."""

    name: str
    architecture: str
    prefix: dict[str, Any]
    head: Callable[[Any, str], None]
    is_ejected: bool = False


def classification(**given: Any) -> Callable[[Any, str], None]:
    return lambda model, name: model.add_classification_head(name, num_labels=3, id2label=LABELS, **given)


def tagging(model: Any, name: str) -> None:
    model.add_tagging_head(name, num_labels=3, id2label=LABELS)


def answering(model: Any, name: str) -> None:
    model.add_qa_head(name)


FLAT, MLP = {"flat": True, "prefix_length": 5}, {"prefix_length": 6, "bottleneck_size": 7}
CASES = (
    Case("bert-flat", "bert", FLAT, classification()),
    Case("bert-mlp-tagging", "bert", MLP | {"leave_out": [1]}, tagging),
    Case("bert-ejected-relu", "bert", MLP | {"non_linearity": "relu"}, classification(), is_ejected=True),
    Case("bert-pooler", "bert", FLAT, classification(layers=1, use_pooler=True)),
    Case("bert-answering", "bert", FLAT, answering),
    Case("bert-gated", "bert", FLAT | {"use_gating": True}, classification()),
    Case("roberta-mlp-linear", "roberta", MLP | {"non_linearity": "relu"}, classification(layers=1)),
    Case("distilbert-flat", "distilbert", FLAT, classification(activation_function="gelu")),
)


def config_of(architecture: str) -> Any:
    if architecture == "distilbert":
        sizes = {"dim": 16, "n_heads": 2, "n_layers": 3, "hidden_dim": 24}
    else:
        sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 24}
    if architecture == "roberta":
        sizes |= {"pad_token_id": 1, "type_vocab_size": 1}
    config = AutoConfig.for_model(architecture, vocab_size=VOCABULARY, max_position_embeddings=POSITIONS, **sizes)
    config._attn_implementation = "eager"
    return config


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Overwrite every parameter, norms near one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = "norm" in name.lower() and name.endswith("weight")
            parameter.copy_(1 + 0.1 * noise if is_norm else 0.25 * noise)


def save_backbone(architecture: str) -> Any:
    """Save a random backbone with a tokenizer of whole words; return its state."""
    folder = ROOT / architecture
    model = AutoAdapterModel.from_config(config_of(architecture))
    randomise(model, 1)
    base = model.base_model
    base.config.save_pretrained(folder)
    state = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    save_file({name: state[name] for name in sorted(state)}, folder / "model.safetensors", {"format": "pt"})
    words = {word: index for index, word in enumerate(["[UNK]", *(f"w{i}" for i in range(1, VOCABULARY))])}
    Tokenizer(models.WordLevel(words, unk_token="[UNK]")).save(str(folder / "tokenizer.json"))
    return state


def batch() -> dict[str, torch.Tensor]:
    """Rows of different lengths, padded with 0 (the mask says where), without RoBERTa's padding id."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.int64)
    for row, length in enumerate(LENGTHS):
        ids[row, :length] = torch.randint(5, VOCABULARY, (length,), generator=generator)
    return {"input_ids": ids, "attention_mask": ids.ne(0).long()}


def save_answers(model: Any, folder: Path, architecture: str) -> None:
    """Compute in fp64 what the library makes of the batch."""
    given = batch()
    padding = 1 if architecture == "roberta" else 0
    given["input_ids"] = given["input_ids"].masked_fill(given["attention_mask"].eq(0), padding)
    with torch.no_grad():
        output = model.double().eval()(**given)
    logits = output.logits if "logits" in output else torch.stack([output.start_logits, output.end_logits], -1)
    save_file(given | {"logits": logits.contiguous()}, folder / "expected.safetensors")


def make(case: Case, state: Any) -> None:
    model = AutoAdapterModel.from_config(config_of(case.architecture))
    model.add_adapter("task", config=PrefixTuningConfig(**case.prefix))
    case.head(model, "task")
    randomise(model, 3)
    model.base_model.load_state_dict(state, strict=False)
    model.set_active_adapters("task")
    if case.is_ejected:
        model.eject_prefix_tuning("task")
    folder = ROOT / "saved" / case.name
    folder.mkdir(parents=True, exist_ok=True)
    model.save_adapter(str(folder), "task", with_head=True)
    save_answers(model, folder, case.architecture)


def make_static(state: Any) -> None:
    """An adapter under transformers' own classification model, whose head is saved beside it."""
    config = config_of("bert")
    config.num_labels = 3
    model = AutoModelForSequenceClassification.from_config(config)
    adapters.init(model)
    model.add_adapter("task", config=PrefixTuningConfig(**FLAT))
    randomise(model, 3)
    model.base_model.load_state_dict(state, strict=False)
    model.set_active_adapters("task")
    folder = ROOT / "saved" / "bert-static"
    folder.mkdir(parents=True, exist_ok=True)
    model.save_adapter(str(folder), "task", with_head=True)
    save_answers(model, folder, "bert")


def main() -> None:
    states = {architecture: save_backbone(architecture) for architecture in ("bert", "roberta", "distilbert")}
    for case in CASES:
        make(case, states[case.architecture])
    make_static(states["bert"])


if __name__ == "__main__":
    main()
