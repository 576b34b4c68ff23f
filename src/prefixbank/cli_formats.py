"""`prefixbank import` and `prefixbank export`: prompts from other tools into the store, and out of it again.

Results go to stdout, remarks to stderr. It refuses to know how the formats look.
"""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from prefixbank.cli_common import DEFAULT_STORE, SHORT, FamilyName, StorePath, address_of, remark

if TYPE_CHECKING:
    from prefixbank.model_store.address import Address
    from prefixbank.model_store.formats.importer import Choices, Imported
    from prefixbank.model_store.store import PromptStore
    from prefixbank.model_store.task_prompt import TaskPrompt


def import_(
    source: Annotated[Path, typer.Argument(help="The folder that the other tool wrote.")],
    backbone: Annotated[str, typer.Option(help="What it was trained on: a folder, a hub id, or minilm.")],
    task: Annotated[str, typer.Option(metavar="TENANT/TASK", help="The address to publish it under.")],
    store: StorePath = DEFAULT_STORE,
    source_format: Annotated[
        Literal["ptuning-v2", "peft", "adapters"] | None,
        typer.Option("--format", help="Of the source.", show_default="what it looks like"),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="By class.", show_default="the source's, or LABEL_0 and so on")
    ] = None,
    family: Annotated[FamilyName | None, typer.Option(help="For a checkpoint without config, or of roles.")] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Longest row.", show_default="384 for questions, else what there are positions for"),
    ] = None,
    null_threshold: Annotated[
        float | None,
        typer.Option(help="For questions that may have no answer: by how much none must win; published is 0."),
    ] = None,
    pair: Annotated[bool | None, typer.Option("--pair/--single", help="It takes two texts, or one.")] = None,
    prefix_space: Annotated[
        bool | None,
        typer.Option("--prefix-space/--no-prefix-space", help="Byte-level BPE: a space before the first word."),
    ] = None,
    source_task: Annotated[
        int | None, typer.Option(min=0, help="Which of the source's tasks, from 0: for PEFT's multitask prompts.")
    ] = None,
    promote: Annotated[bool, typer.Option("--promote", help="Serve it: make it live.")] = False,
) -> None:
    """Take in a prompt of P-tuning-v2, PEFT or adapters, deep or shallow. Prints the revision; refuses the unservable.

    Example: `prefixbank import runs/checkpoint-500 --backbone bert-large-cased --task acme/rte --promote`
    """
    from prefixbank.model_store.formats.importer import Choices
    from prefixbank.model_store.task_prompt import TaskFamily

    choices = Choices(
        labels=None if labels is None else tuple(label.strip() for label in labels.split(",")),
        family=None if family is None else TaskFamily(family),
        max_tokens=max_tokens,
        pair=pair,
        add_prefix_space=prefix_space,
        source_task=source_task,
        null_threshold=null_threshold,
    )
    address = address_of(task)
    imported = _import(source, backbone, choices, source_format)
    remark(f"{imported.method}: {_summary(imported.prompt)}")
    remark(f"backbone: {imported.backbone_evidence}")
    _publish(imported.prompt, address, store, promote)


def export(
    task: Annotated[str, typer.Argument(metavar="TENANT/TASK", help="The task's address, as in acme/intents.")],
    target: Annotated[Literal["peft", "ptuning-v2"], typer.Option("--format", help="Of the other tool.")],
    output: Annotated[Path, typer.Option(help="A new or empty folder.")],
    store: StorePath = DEFAULT_STORE,
    alias: Annotated[str, typer.Option(help="Whose revision to write.")] = "live",
    revision: Annotated[
        str | None, typer.Option(help="This one instead: its first 4 or more digits.", show_default="the alias's")
    ] = None,
) -> None:
    """Write a published prompt for PEFT or P-tuning-v2. Prints the folder; what would answer otherwise is refused.

    Example: `prefixbank export acme/rte --format peft --output rte-peft`
    """
    from prefixbank.model_store.formats.exporter import export_prompt
    from prefixbank.model_store.formats.foreign import Format
    from prefixbank.model_store.store import PromptStore

    address, prompts = address_of(task), PromptStore.existing(store)
    whole = prompts.resolve(address, alias) if revision is None else prompts.find_revision(address, revision)
    prompt = prompts.load(address, whole)
    export_prompt(prompt, Format(target), output)
    typer.echo(output)
    remark(f"{address} {whole[:SHORT]}: {_summary(prompt)}")


def _import(source: Path, backbone: str, choices: Choices, said: str | None) -> Imported:
    """Whether the source is of a known format is found out before the backbone is loaded, which takes longer."""
    from prefixbank.model_store.backbones.load import load_backbone
    from prefixbank.model_store.formats.detect import detect
    from prefixbank.model_store.formats.foreign import Format
    from prefixbank.model_store.formats.importer import import_prompt

    source_format = Format(said) if said else detect(source)
    remark(f"reading {source} as {source_format}, for {backbone}")
    return import_prompt(source, load_backbone(backbone), choices, source_format)


def _summary(prompt: TaskPrompt) -> str:
    """What was read or written, in one line."""
    spec, family = prompt.head.spec, prompt.family.value
    pooler = f"{spec.pooler.value} pooler" + (f" ({spec.activation})" if spec.activation else "")
    pooler += " of the first vector" if spec.pools == "prompt" else ""
    deep = f"{prompt.prefix_length} prefix tokens in {len(prompt.layers)} of {prompt.backbone.num_layers} layers"
    shallow = f"{prompt.shallow_length} vectors before the text"
    return (
        f"{shallow if prompt.shallow_length else deep}, "
        f"{family} with {len(prompt.labels)} classes, {pooler}, position offset {prompt.position_offset}, "
        f"rows of up to {prompt.preprocessing.max_tokens} tokens"
    )


def _publish(prompt: TaskPrompt, address: Address, path: Path, promote: bool) -> None:
    from prefixbank.model_store.store import PromptStore

    prompts: PromptStore = PromptStore(path)
    revision = prompts.publish(address, prompt)
    typer.echo(revision)
    if promote:
        prompts.promote(address, revision)
        remark(f"{address}: live is {revision[:SHORT]}")
    else:
        remark(f"published, not promoted: prefixbank store promote {address} {revision[:SHORT]}")
