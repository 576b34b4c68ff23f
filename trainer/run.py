"""One run from recipe to artifact and report: read, build, train, evaluate, fold, check against the server.

It composes the other modules. It refuses to know serving (the check is handed in), stores and publishing.

Shape letters: T tokens of one row, C classes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from prefixbank.model_store import artifact
from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.errors import ServingMismatch, TrainingError
from prefixbank.model_store.task_prompt import Preprocessing, Provenance, TaskFamily, TaskPrompt
from prefixbank.trainer import checkpoint, report
from prefixbank.trainer.evaluate import Scores, predict, score, score_in_full
from prefixbank.trainer.loop import Loop
from prefixbank.trainer.network import Network, build, precision_of
from prefixbank.trainer.progress import LogDisplay
from prefixbank.trainer.readers import read_splits
from prefixbank.trainer.rows import encode_rows, label_names

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.tasks.features import Features
    from prefixbank.trainer.loop import State
    from prefixbank.trainer.progress import Display
    from prefixbank.trainer.recipe import Recipe
    from prefixbank.trainer.rows import Row

logger = logging.getLogger(__name__)

ARTIFACT_FOLDER = "artifact"
METRIC_TOLERANCE = 0.01
"""How far the served metric may lie from the trained one: ties fall either way."""
LOGIT_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""How far served logits may lie from trained ones, root mean square over the deviation of the logits."""


class Verify(Protocol):
    """The serving engine's logits for rows of a prompt: [C] each, or [T, C] for words."""

    def __call__(
        self, prompt: TaskPrompt, rows: Sequence[Features], backbone: Backbone
    ) -> Sequence[NDArray[np.float32]]: ...


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run made."""

    report: dict[str, Any]
    prompt: TaskPrompt | None
    """None after full fine-tuning."""
    folder: Path | None
    """The artifact; None where there is no prompt."""


@dataclass(frozen=True, slots=True)
class _Prepared:
    """Rows of every split, ready for the backbone."""

    labels: tuple[str, ...]
    prep: Preprocessing
    rows: dict[str, list[Row]]
    files: dict[str, str] = field(default_factory=dict)

    @property
    def reported(self) -> str:
        return "test" if self.rows["test"] else "validation"

    def identity(self, recipe: Recipe) -> str:
        """Digest of recipe and data."""
        facts = [recipe.model_dump(mode="json"), self.files]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def train(
    recipe: Recipe,
    out: Path,
    *,
    root: Path,
    backbone: Backbone | None = None,
    device: torch.device | str = "cpu",
    verify: Verify | None = None,
    resume: bool = False,
    display: Display | None = None,
) -> Trained:
    """Run a recipe whose paths are relative to `root`; write the artifact and `report.json` under `out`.

    Args:
        backbone: already loaded; by default the recipe's, on `device`.
        verify: asks the serving engine for its logits. Without it the report says that nobody did.
        resume: continue from the checkpoint in `out`.

    Raises:
        InvalidData, TrainingError, BackboneError: the run cannot begin, or cannot go on.
        TrainingInterrupted: Ctrl-C or SIGTERM; `resume` continues.
        ServingMismatch: the served logits differ from the trained ones; no artifact is left behind.
    """
    backbone = backbone or _load(recipe, torch.device(device))
    prepared = prepare(recipe, root, backbone)
    network = build(recipe, backbone, prepared.rows["train"], len(prepared.labels))
    out.mkdir(parents=True, exist_ok=True)
    loop = Loop(
        network,
        prepared.rows["train"],
        prepared.rows["validation"],
        prepared.labels,
        identity=prepared.identity(recipe),
        folder=out,
        display=display or LogDisplay(),
    )
    if resume:
        loop.resume()
    state = loop.run()
    trained = _finish(network, prepared, state, out, verify)
    checkpoint.remove(out)
    return trained


def prepare(recipe: Recipe, root: Path, backbone: Backbone) -> _Prepared:
    """Read and tokenise all splits."""
    splits = read_splits(recipe, root)
    labels = label_names(splits.train, recipe.data.labels)
    if len(labels) < 2:
        raise TrainingError(f"data.train: found the labels {', '.join(labels)}, wanted two or more")
    prep = preprocessing_of(recipe, backbone)
    rows = {name: encode_rows(split, labels, backbone.tokenizer, prep) for name, split in splits._asdict().items()}
    return _Prepared(labels, prep, rows, _digests(recipe, root))


def preprocessing_of(recipe: Recipe, backbone: Backbone) -> Preprocessing:
    """How inputs become token ids; written into the artifact, so that the server does the same.

    Raises:
        TrainingError: rows of the recipe's length do not fit the backbone beside the position offset.
    """
    most = backbone.max_tokens(recipe.position_offset)
    if recipe.max_tokens > most:
        raise TrainingError(f"max_tokens: found {recipe.max_tokens}, wanted at most {most} on this backbone")
    return Preprocessing(
        max_tokens=recipe.max_tokens,
        pair=len(recipe.data.text) == 2,
        add_prefix_space=recipe.family == TaskFamily.TOKEN_CLASSIFICATION,
        text_fields=recipe.data.text,
    )


def _load(recipe: Recipe, device: torch.device) -> Backbone:
    dtype = torch.float32 if recipe.method == "full" else precision_of(recipe, device)
    return load_backbone(recipe.backbone, dtype=dtype, device=device)


def _finish(network: Network, prepared: _Prepared, state: State, out: Path, verify: Verify | None) -> Trained:
    """Evaluate what will be stored, write it, and have the server asked."""
    recipe = network.recipe
    network.prompt.round_to(getattr(torch, recipe.prompt.dtype))
    logits = {name: predict(network, rows) for name, rows in prepared.rows.items() if rows and name != "train"}
    scores = {name: score_in_full(found, prepared.rows[name], prepared.labels) for name, found in logits.items()}
    written = report.compose(
        network,
        state,
        splits={name: report.summarise(rows, prepared.labels) for name, rows in prepared.rows.items() if rows},
        scores=scores,
        reported=prepared.reported,
        data=prepared.files,
    )
    if recipe.method == "full":
        report.write(written, out)
        return Trained(written, None, None)
    prompt = fold(network, prepared, scores)
    rows = prepared.rows[prepared.reported]
    written["serving_check"] = (
        None if verify is None else check_serving(prompt, network, rows, logits[prepared.reported], prepared, verify)
    )
    folder = out / ARTIFACT_FOLDER
    if folder.exists():
        shutil.rmtree(folder)
    artifact.write(prompt, folder)
    written["revision"] = artifact.digest(folder)
    report.write(written, out)
    return Trained(written, prompt, folder)


def fold(network: Network, prepared: _Prepared, scores: dict[str, Scores]) -> TaskPrompt:
    """The trained tensors and all that describes them as one value."""
    recipe = network.recipe
    return TaskPrompt(
        family=recipe.family,
        labels=prepared.labels,
        layers=network.prompt.layers,
        kv_N2HPD=network.prompt.fold(getattr(torch, recipe.prompt.dtype)).cpu(),
        position_offset=recipe.position_offset,
        head=network.head.fold(),
        preprocessing=prepared.prep,
        backbone=network.backbone.ref,
        metrics={f"{split}_{name}": value for split, s in scores.items() for name, value in s.metrics.items()},
        provenance=Provenance(created=report.now(), software=report.software(), recipe=recipe.model_dump(mode="json")),
    )


def check_serving(
    prompt: TaskPrompt,
    network: Network,
    rows: Sequence[Row],
    trained: Sequence[NDArray[np.float32]],
    prepared: _Prepared,
    verify: Verify,
) -> dict[str, Any]:
    """Compare the server's logits with the trainer's own.

    Raises:
        ServingMismatch: they or the metric differ beyond tolerance.
    """
    served = verify(prompt, [row.features for row in rows], network.backbone)
    metric = network.recipe.metric
    scores = [score(logits, rows, prepared.labels).metrics[metric] for logits in (trained, served)]
    own, other = (np.concatenate([one.ravel() for one in logits]) for logits in (trained, served))
    distance = float(np.sqrt(np.mean((own - other) ** 2)) / max(float(own.std()), 1e-6))
    tolerance = LOGIT_TOLERANCE[network.backbone.dtype]
    if not (distance <= tolerance and abs(scores[0] - scores[1]) <= METRIC_TOLERANCE):
        raise ServingMismatch(
            f"{metric}: trained {scores[0]:.4f}, served {scores[1]:.4f}; logits lie {distance:.2g} apart, wanted at "
            f"most {tolerance:g}: not published"
        )
    found = {"metric": metric, "trained": scores[0], "served": scores[1], "rows": len(rows)}
    return found | {"logit_distance": distance, "logit_tolerance": tolerance}


def _digests(recipe: Recipe, root: Path) -> dict[str, str]:
    """SHA-256 of every file the recipe names, by its path in the recipe."""
    sources = (recipe.data.train, recipe.data.validation, recipe.data.test)
    paths = {source.path for source in sources if source is not None}
    return {path: hashlib.sha256((root / path).read_bytes()).hexdigest() for path in sorted(paths)}
