"""From a folder of another tool to a TaskPrompt: read it, hold it against the backbone, fill in what it does not say.

It refuses to know stores and the layouts of the formats.

Shape letters: P prefix tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefixbank.model_store import artifact
from prefixbank.model_store.errors import NotRepresentable, SourceInvalid
from prefixbank.model_store.formats import adapters, peft, ptuning_v2
from prefixbank.model_store.formats.detect import detect
from prefixbank.model_store.formats.foreign import Dense, ForeignPrompt, Format, ModelPooler, TrainedPooler
from prefixbank.model_store.formats.frozen import check_same_config, check_same_encoder, is_backbones_pooler
from prefixbank.model_store.formats.labels import carried_as, labels_for
from prefixbank.model_store.formats.preparation import preprocessing_for
from prefixbank.model_store.formats.sidecar import Sidecar, read_sidecar
from prefixbank.model_store.formats.source_files import find_tensors
from prefixbank.model_store.task_prompt import (
    Head,
    HeadSpec,
    Pooler,
    Provenance,
    TaskPrompt,
)

if TYPE_CHECKING:
    from pathlib import Path

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.formats.foreign import ForeignHead
    from prefixbank.model_store.task_prompt import TaskFamily


_WEIGHTS = {Format.PEFT: peft.WEIGHTS, Format.PTUNING_V2: ptuning_v2.WEIGHTS, Format.ADAPTERS: adapters.WEIGHTS}


@dataclass(frozen=True, slots=True)
class Choices:
    """What the user says about a source; None leaves it to the source."""

    labels: tuple[str, ...] | None = None
    """By class. Where the source has none either: LABEL_0 and so on."""
    family: TaskFamily | None = None
    """For a P-tuning-v2 checkpoint without a config, and for semantic roles, which other tools call token classes."""
    max_tokens: int | None = None
    """Longest row; without, as published for questions, else as long as the backbone has positions for."""
    pair: bool | None = None
    add_prefix_space: bool | None = None
    """Without: for token classification and roles, as P-tuning-v2 does."""
    null_threshold: float | None = None
    """For questions some of which have no answer: by how much the null answer must win; published is 0."""
    source_task: int | None = None
    """Which task's prompt, of a source that holds several (PEFT's multitask prompts)."""


@dataclass(frozen=True, eq=False, slots=True)
class Imported:
    """A prompt, and what it stands on."""

    prompt: TaskPrompt
    method: str
    backbone_evidence: str
    """How it is known that the backbone is the one that the prompt was made for."""


def import_prompt(
    folder: Path, backbone: Backbone, choices: Choices | None = None, source_format: Format | None = None
) -> Imported:
    """The prompt in `folder`, checked as an artifact is.

    Args:
        backbone: loaded in fp32, to be compared with the encoder that the source may carry.
        source_format: instead of the one that the folder looks like.

    Raises:
        FormatError: the source is of no known format, malformed, or has no equal here.
        BackboneMismatch: it was made for another backbone.
        ArtifactError: its numbers are no artifact's: NaN, infinity, beyond fp16.
    """
    choices = choices or Choices()
    source_format = source_format or detect(folder)
    foreign = _read(folder, backbone, choices, source_format)
    if foreign.shallow_PM is not None:
        _ = backbone.word_embedding_VM  # refuses embeddings of another width than the model's
    sidecar = read_sidecar(folder, backbone.ref, find_tensors(folder, _WEIGHTS[source_format]))
    evidence = _check_backbone(foreign, sidecar, backbone)
    prompt = _task_prompt(foreign, sidecar, backbone, choices)
    return Imported(artifact.seal(prompt).unseal(), foreign.method, evidence)


def _read(folder: Path, backbone: Backbone, choices: Choices, source_format: Format) -> ForeignPrompt:
    if choices.source_task is not None and source_format is not Format.PEFT:
        raise SourceInvalid(f"task {choices.source_task} was chosen, and a source of {source_format} holds one")
    match source_format:
        case Format.PEFT:
            return peft.read(folder, backbone.ref, choices.source_task)
        case Format.ADAPTERS:
            return adapters.read(folder, backbone.ref)
        case Format.PTUNING_V2:
            return ptuning_v2.read(folder, backbone.ref, choices.family and carried_as(choices.family))
        case Format.GLM:
            raise NotRepresentable(f"{folder} is of GLM; this version serves no GLM backbone and no verbalizer head")


def _check_backbone(foreign: ForeignPrompt, sidecar: Sidecar | None, backbone: Backbone) -> str:
    """Compare what can be compared, and say what that was."""
    check_same_config(foreign.config, backbone)
    if foreign.frozen:
        check_same_encoder(foreign.frozen, backbone)
        return f"the source's {len(foreign.frozen)} encoder tensors are those of {backbone.ref.name!r}"
    if sidecar is not None:
        return f"the source names the fingerprint of {backbone.ref.name!r}"
    named = f", which the source calls {foreign.made_for[:200]!r}" if foreign.made_for else ""
    return f"the source does not hold its backbone{named}: that it is {backbone.ref.name!r} is taken on trust"


def _task_prompt(foreign: ForeignPrompt, sidecar: Sidecar | None, backbone: Backbone, choices: Choices) -> TaskPrompt:
    head = foreign.head
    family = _family(head.family, sidecar, choices)
    named = sidecar.labels if sidecar else foreign.labels
    return TaskPrompt(
        family=family,
        labels=labels_for(family, len(head.classifier.bias), choices.labels, named),
        layers=foreign.layers,
        kv_N2HPD=foreign.kv_N2HPD,
        position_offset=foreign.position_offset,
        head=_head(head, backbone),
        preprocessing=preprocessing_for(
            family, foreign.position_offset, sidecar.preprocessing if sidecar else None, backbone, choices
        ),
        backbone=sidecar.backbone if sidecar else backbone.ref,
        metrics=sidecar.metrics if sidecar else {},
        provenance=sidecar.provenance if sidecar else _provenance(foreign),
        shallow_PM=foreign.shallow_PM,
    )


def _family(found: TaskFamily, sidecar: Sidecar | None, choices: Choices) -> TaskFamily:
    """What the source's files say, or the family of ours that they carry under that name.

    Raises:
        SourceInvalid: the user or the sidecar says another.
    """
    if choices.family is not None and carried_as(choices.family) is not found:
        raise SourceInvalid(f"--family says {choices.family}; the source's own files say {found}")
    said = choices.family or (sidecar.family if sidecar else found)
    if sidecar is not None and carried_as(sidecar.family) is not found:
        raise SourceInvalid(f"the sidecar says {sidecar.family}; the source's own files say {found}")
    return said if carried_as(said) is found else found


def _head(head: ForeignHead, backbone: Backbone) -> Head:
    """The head, its pooler the backbone's where the numbers are the same, its own where they are not."""
    match head.pooler:
        case None:
            spec, pooler = HeadSpec(pooler=Pooler.NONE, pools=head.pools), None
        case TrainedPooler(dense=pooler, activation=activation):
            spec = HeadSpec(pooler=Pooler.OWN, activation=activation, pools=head.pools)
        case ModelPooler(carried=Dense() as pooler) if not is_backbones_pooler(pooler, backbone):
            spec = HeadSpec(pooler=Pooler.OWN, activation="tanh", pools=head.pools)
        case _:
            if not backbone.has_pooler:
                raise SourceInvalid(f"the head reads a pooler that neither the source nor {backbone.ref.name!r} has")
            spec, pooler = HeadSpec(pooler=Pooler.BACKBONE, pools=head.pools), None
    own = (pooler.weight.float(), pooler.bias.float()) if pooler else ()
    return Head(spec, head.classifier.weight.float(), head.classifier.bias.float(), *own)


def _provenance(foreign: ForeignPrompt) -> Provenance:
    """Nothing in it changes from one import to the next: the same source is the same revision."""
    made_for = {"made_for": foreign.made_for[:1000]} if foreign.made_for else {}
    return Provenance(
        source=foreign.format.value, software=dict(foreign.software), recipe={**foreign.facts, **made_for}
    )
