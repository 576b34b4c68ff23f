"""Tiny random backbones with real small tokenizers, made on the spot, for tests and benchmarks.

Every weight is random and large enough that a wrong mask, position or prefix shows in the first digits. This file
refuses to know pytest.
"""

from __future__ import annotations

import json
import string
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining

from prefixbank.kernels.plan import LayerPrefix

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from transformers import PreTrainedConfig

ARCHITECTURES = ("bert", "roberta", "xlm-roberta", "electra", "distilbert", "modernbert")
WITHOUT_POOLER = ("roberta", "xlm-roberta")
"""Saved as the hub's checkpoints are today: without the pooler's weights."""

WIDTH, HEADS, LAYERS, POSITIONS = 32, 4, 3, 512

SENTENCES = (
    "the film was a quiet joy from the first scene to the last",
    "a dull and tired plot, badly acted and far too long",
    "Maria Lopez flew from Madrid to Oslo on Monday",
    "Acme Ltd opened an office in Berlin and hired John Smith",
    "book a table for two at seven in the evening",
    "what is the weather like in Paris tomorrow?",
    "turn the lights off in the kitchen, please",
    "is the sky blue because of the air or because of the sea?",
    "the court said on Friday that the law does not hold",
    "I would not watch this again, but my sister loved it!",
    "play some music by Nina Simone and set the volume to 11",
    "how many people live in New York and in Tokyo?",
)

_BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ROBERTA_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
_CHARACTERS = string.ascii_letters + string.digits + string.punctuation


def tiny_backbone_folder(parent: Path, architecture: str, seed: int = 0) -> Path:
    """Make (once) and return the folder of the tiny backbone of `architecture` under `parent`."""
    folder = parent / f"tiny-{architecture}-{seed}"
    if (folder / "model.safetensors").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer(architecture)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(_tokenizer_config(architecture)))
    config = tiny_config(architecture, tokenizer.get_vocab_size())
    config.save_pretrained(folder)
    save_file(random_weights(config, seed), folder / "model.safetensors", {"format": "pt"})
    return folder


def tiny_lm_folder(parent: Path, architecture: str, **changed: object) -> Path:
    """Make (once) and return the folder of a tiny backbone with its masked-LM head; `changed` is of its config.

    BERT has its pooler too, as on the hub.
    """
    folder = parent / f"tiny-lm-{architecture}-{'-'.join(map(str, changed.values()))}"
    if (folder / "model.safetensors").exists():
        return folder
    tokenizer = tiny_tokenizer(architecture)
    config = tiny_config(architecture, tokenizer.get_vocab_size())
    if architecture == "electra":
        config.embedding_size = WIDTH
    config.update(changed)
    model = (AutoModelForPreTraining if architecture == "bert" else AutoModelForMaskedLM).from_config(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + 0.1 * noise if "norm" in name.lower() and name.endswith("weight") else 0.25 * noise)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(_tokenizer_config(architecture)))
    return folder


def tiny_config(architecture: str, vocab_size: int) -> PreTrainedConfig:
    """The config of a tiny backbone: three layers of four heads of eight."""
    common = {"vocab_size": vocab_size, "hidden_size": WIDTH, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS}
    special = _special_ids(architecture)
    if architecture == "distilbert":
        sizes = {"vocab_size": vocab_size, "dim": WIDTH, "n_heads": HEADS, "n_layers": LAYERS, "hidden_dim": 64}
        return AutoConfig.for_model("distilbert", **sizes, max_position_embeddings=POSITIONS, **special)
    if architecture == "modernbert":
        local = {"local_attention": 8, "global_attn_every_n_layers": 2}
        return AutoConfig.for_model(
            "modernbert", **common, intermediate_size=48, max_position_embeddings=POSITIONS, **local, **special
        )
    offset = 2 if "roberta" in architecture else 0
    types = 1 if "roberta" in architecture else 2
    extra = {"embedding_size": 16} if architecture == "electra" else {}
    return AutoConfig.for_model(
        architecture,
        **common,
        intermediate_size=64,
        max_position_embeddings=POSITIONS + offset,
        type_vocab_size=types,
        **extra,
        **special,
    )


def random_weights(config: PreTrainedConfig, seed: int) -> dict[str, torch.Tensor]:
    """Weights of the base model, large enough that attention is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    model = AutoModel.from_config(config)
    weights = {}
    for name, weight in sorted(model.state_dict().items()):
        if name.startswith("pooler.") and config.model_type in WITHOUT_POOLER:
            continue
        noise = torch.randn(weight.shape, generator=generator)
        is_norm = "norm" in name.lower() and name.endswith("weight")
        weights[name] = 1 + 0.1 * noise if is_norm else 0.25 * noise
    return weights


def random_prompt(layers: Sequence[int], length: int, seed: int = 0, **sizes: int) -> dict[int, torch.Tensor]:
    """Random keys and values [2, H, P, D] for some layers, fp32."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, sizes.get("heads", HEADS), length, sizes.get("dim", WIDTH // HEADS))
    return {layer: torch.randn(shape, generator=generator) for layer in layers}


def prompt_pools(
    prompts: Sequence[Mapping[int, torch.Tensor]], num_layers: int = LAYERS, dtype: torch.dtype = torch.float32
) -> list[LayerPrefix]:
    """Lay prompts (layer -> [2, H, P, D]) into one pool per layer: prompt i is slot i + 1, what is unused is NaN."""
    heads, dim = next((kv.shape[1], kv.shape[3]) for prompt in prompts for kv in prompt.values())
    nothing = torch.zeros(2, heads, 0, dim)
    layers = []
    for layer in range(num_layers):
        parts = [nothing, *(prompt.get(layer, nothing) for prompt in prompts)]
        gap = torch.full((2, heads, 16, dim), float("nan"))
        pool_2HND = torch.cat([x for part in parts for x in (part, gap)], dim=2).to(dtype)
        lengths = torch.tensor([part.shape[2] for part in parts], dtype=torch.int32)
        starts = (lengths + 16).cumsum(0, dtype=torch.int32) - lengths - 16
        layers.append(LayerPrefix(pool_2HND[0], pool_2HND[1], starts, lengths))
    return layers


def tiny_tokenizer(architecture: str) -> Tokenizer:
    """WordPiece for the BERT family, byte-level BPE for RoBERTa and ModernBERT, Unigram for XLM-R."""
    if architecture == "roberta":
        return _byte_level(_ROBERTA_SPECIAL)
    if architecture == "modernbert":
        return _byte_level(_BERT_SPECIAL)
    return _unigram() if architecture == "xlm-roberta" else _word_piece()


def _words() -> list[str]:
    return sorted({word.strip(",.?!") for sentence in SENTENCES for word in sentence.split()})


def _word_piece() -> Tokenizer:
    words = {word.lower() for word in _words()}
    pieces = [*_BERT_SPECIAL, *_CHARACTERS, *(f"##{c}" for c in _CHARACTERS), *sorted(words), "##s", "##ing", "##ed"]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _finished(tokenizer, _BERT_SPECIAL)


def _byte_level(special: tuple[str, ...]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=list(special), initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return _finished(tokenizer, special)


def _unigram() -> Tokenizer:
    pieces = [f"▁{word}" for word in _words()] + ["▁", *_CHARACTERS]
    scored = [(piece, 0.0) for piece in _ROBERTA_SPECIAL]
    scored += [(piece, -2.0 - 2.0 * (len(piece) == 1)) for piece in dict.fromkeys(pieces)]
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=_ROBERTA_SPECIAL.index("<unk>"), byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _finished(tokenizer, _ROBERTA_SPECIAL)


def _finished(tokenizer: Tokenizer, special: tuple[str, ...]) -> Tokenizer:
    """Add the special tokens and the template that surrounds one or two texts."""
    tokenizer.add_special_tokens(list(special))
    ids = [(token, tokenizer.token_to_id(token)) for token in special]
    if special is _BERT_SPECIAL:
        single, pair = "[CLS]:0 $A:0 [SEP]:0", "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1"
    else:
        single, pair = "<s>:0 $A:0 </s>:0", "<s>:0 $A:0 </s>:0 </s>:0 $B:0 </s>:0"
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
    return tokenizer


def _special_ids(architecture: str) -> dict[str, int]:
    if "roberta" in architecture:
        return {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    ids = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    return ids if architecture == "modernbert" else {"pad_token_id": 0}


def _tokenizer_config(architecture: str) -> dict[str, object]:
    if "roberta" in architecture:
        names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
        names |= {"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
    else:
        names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
        names |= {"unk_token": "[UNK]", "mask_token": "[MASK]"}
    return {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": POSITIONS, **names}
