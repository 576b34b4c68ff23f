"""The prompts of PEFT that stand at the input: PROMPT_TUNING, P_TUNING and MULTITASK_PROMPT_TUNING.

PEFT has run P_TUNING's encoder when it saves; one task's share of a multitask prompt is folded in here. It refuses to
know files and heads.

Shape letters: P virtual tokens, M model width, G tasks of a multitask prompt, F its rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefixbank.model_store.errors import BackboneMismatch, NotRepresentable, SourceInvalid
from prefixbank.model_store.formats.prefix_layout import HELD
from prefixbank.model_store.task_prompt import TaskFamily

if TYPE_CHECKING:
    from torch import Tensor

    from prefixbank.model_store.formats.heads import TensorBag
    from prefixbank.model_store.task_prompt import BackboneRef

PROMPT_TUNING, MULTITASK = "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING"
KINDS = (PROMPT_TUNING, "P_TUNING", MULTITASK)
COLUMNS, ROWS = "prefix_task_cols", "prefix_task_rows"
_POOLED = TaskFamily.TEXT_CLASSIFICATION
FAMILIES = (_POOLED, TaskFamily.TOKEN_CLASSIFICATION)
"""Those of which it is known which states their head reads: the first virtual token's, or those of the text."""


def check_family(family: TaskFamily, kind: str) -> None:
    """Refuse a head whose reading place is not known."""
    if family not in FAMILIES:
        raise NotRepresentable(
            f"PEFT {kind} for {family}: it is trained with positions counted from the first virtual token, so that its "
            f"head does not read the token that it speaks of"
        )


def shallow_prompt(bag: TensorBag, embeddings_PM: Tensor, kind: str, task: int | None, ref: BackboneRef) -> Tensor:
    """The vectors [P, M] before the text.

    Args:
        task: which of a multitask prompt's; it may be left out where there is one.

    Raises:
        NotRepresentable: there are several tasks, and none was chosen.
        SourceInvalid, BackboneMismatch: its tensors are not there, or of other shapes.
    """
    found = list(embeddings_PM.shape)
    if found[1:] != [ref.width]:
        raise BackboneMismatch(f"prompt_embeddings is {found}; this backbone takes [P, {ref.width}]")
    if not embeddings_PM.is_floating_point():
        raise SourceInvalid(f"the prompt holds {embeddings_PM.dtype}, not floating-point numbers")
    if kind == MULTITASK:
        return _folded(embeddings_PM, bag.take(COLUMNS), bag.take(ROWS), task)
    return embeddings_PM if embeddings_PM.dtype in HELD else embeddings_PM.float()


def _folded(embeddings_PM: Tensor, columns_GPF: Tensor, rows_GFM: Tensor, task: int | None) -> Tensor:
    """The shared prompt times what one task makes of it, in fp64."""
    shapes = [list(tensor.shape) for tensor in (embeddings_PM, columns_GPF, rows_GFM)]
    (length, width), columns, rows = shapes
    if len(columns) != 3 or rows != [columns[0], columns[2], width] or columns[1] != length:
        raise SourceInvalid(f"the shapes of the multitask prompt do not follow from each other: {shapes}")
    if not (columns_GPF.is_floating_point() and rows_GFM.is_floating_point()):
        raise SourceInvalid(
            f"{COLUMNS} and {ROWS} hold {columns_GPF.dtype} and {rows_GFM.dtype}, no floating-point numbers"
        )
    chosen = _chosen(task, columns[0])
    share_PM = columns_GPF[chosen].double() @ rows_GFM[chosen].double()
    return (embeddings_PM.double() * share_PM).float()


def _chosen(task: int | None, num_tasks: int) -> int:
    if task is None and num_tasks != 1:
        raise NotRepresentable(
            f"the source holds the prompts of {num_tasks} tasks, and a task prompt is one's: choose with --source-task "
            f"0 to {num_tasks - 1}"
        )
    if task is not None and not 0 <= task < num_tasks:
        raise SourceInvalid(f"task {task} was chosen; the source holds tasks 0 to {num_tasks - 1}")
    return task or 0
