"""Heads as other tools store them: which tensors, of which shapes, behind which pooler.

`TensorBag` hands out each tensor once, so that what nobody asked for is noticed: a tensor left over is part of the
answer that we would leave out. It refuses to know files and prefixes.

Shape letters: C classes, M model width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefixbank.model_store.errors import BackboneMismatch, NotRepresentable, SourceInvalid
from prefixbank.model_store.formats.foreign import Activation, Dense, ForeignHead, ModelPooler, TrainedPooler
from prefixbank.model_store.task_prompt import TaskFamily

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from prefixbank.model_store.task_prompt import BackboneRef

_BERT_LIKE = ("bert", "roberta", "xlm-roberta", "electra", "distilbert")
"""Architectures whose token and span classifiers read the hidden states through nothing else."""
_OWN_ACTIVATION: dict[str, Activation] = {"roberta": "tanh", "xlm-roberta": "tanh", "electra": "gelu"}
"""Architectures whose text classifier in transformers is dense, activation, out_proj."""
FIXED_CLASSES = {TaskFamily.QUESTION_ANSWERING: 2, TaskFamily.MULTIPLE_CHOICE: 1}


class TensorBag:
    """Tensors by name, each taken at most once."""

    def __init__(self, tensors: Mapping[str, Tensor], where: str) -> None:
        self._left = dict(tensors)
        self._where = where

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str) -> Tensor:
        """The tensor of that name; raises SourceInvalid when there is none."""
        if name not in self._left:
            raise SourceInvalid(f"{self._where} has no {name!r}; it has {_some(self._left)}")
        return self._left.pop(name)

    def take_dense(self, name: str, *, bias_may_lack: bool = False) -> Dense:
        """The layer `name.weight`, `name.bias`, as stored; a bias that may lack is zero then."""
        weight = self._take_floats(f"{name}.weight")
        if bias_may_lack and f"{name}.bias" not in self:
            return Dense(weight, weight.new_zeros(weight.shape[:1]))
        return Dense(weight, self._take_floats(f"{name}.bias"))

    def take_below(self, prefix: str) -> dict[str, Tensor]:
        """Every tensor whose name begins with `prefix`, by the rest of its name."""
        names = [name for name in self._left if name.startswith(prefix)]
        return {name.removeprefix(prefix): self._left.pop(name) for name in names}

    def _take_floats(self, name: str) -> Tensor:
        tensor = self.take(name)
        if not tensor.is_floating_point():
            raise SourceInvalid(f"{name} holds {tensor.dtype}, not floating-point numbers")
        return tensor

    def check_empty(self) -> None:
        """Raise NotRepresentable unless every tensor was taken."""
        if self._left:
            raise NotRepresentable(
                f"{self._where} also trains {_some(self._left)}, which has no place in a task prompt"
            )


def transformers_head(bag: TensorBag, family: TaskFamily, ref: BackboneRef) -> ForeignHead:
    """The head of transformers' own classes, as PEFT and static adapter models keep it.

    Raises:
        NotRepresentable: this architecture's head of the family has no equal here.
        SourceInvalid, BackboneMismatch: its tensors are not there, or of other shapes.
    """
    architecture = ref.architecture
    if architecture not in _BERT_LIKE or (family, architecture) == (TaskFamily.TEXT_CLASSIFICATION, "distilbert"):
        raise NotRepresentable(f"transformers' {family} head of {architecture} is not dense, tanh or gelu, classifier")
    if family is TaskFamily.QUESTION_ANSWERING:
        return checked_head(ForeignHead(family, bag.take_dense("qa_outputs"), None), ref)
    if family is TaskFamily.TOKEN_CLASSIFICATION:
        return checked_head(ForeignHead(family, bag.take_dense("classifier"), None), ref)
    if architecture in _OWN_ACTIVATION:
        pooler = TrainedPooler(bag.take_dense("classifier.dense"), _OWN_ACTIVATION[architecture])
        return checked_head(ForeignHead(family, bag.take_dense("classifier.out_proj"), pooler), ref)
    carried = bag.take_dense("bert.pooler.dense") if "bert.pooler.dense.weight" in bag else None
    return checked_head(ForeignHead(family, bag.take_dense("classifier"), ModelPooler(carried)), ref)


def checked_head(head: ForeignHead, ref: BackboneRef) -> ForeignHead:
    """`head`, its shapes those of the backbone and the family.

    Raises:
        BackboneMismatch: it reads hidden states of another width.
        NotRepresentable: it answers with a number.
        SourceInvalid: it has another number of classes than its family takes.
    """
    _check_dense("the classifier", head.classifier, None, ref.width)
    match head.pooler:
        case TrainedPooler(dense=pooler) | ModelPooler(carried=Dense() as pooler):
            _check_dense("the pooler", pooler, ref.width, ref.width)
    num_classes = head.classifier.weight.shape[0]
    wanted = FIXED_CLASSES.get(head.family, num_classes)
    if num_classes != wanted or not num_classes:
        raise SourceInvalid(f"the classifier has {num_classes} outputs; {head.family} takes {wanted or 'some'}")
    if head.family is TaskFamily.TEXT_CLASSIFICATION and num_classes == 1:
        raise NotRepresentable("the classifier has one output, a regression; no task family answers with a number")
    return head


def _check_dense(what: str, dense: Dense, rows: int | None, columns: int) -> None:
    found, bias = list(dense.weight.shape), list(dense.bias.shape)
    if len(found) != 2 or bias != found[:1]:
        raise SourceInvalid(f"{what} is {found} with a bias {bias}, not a matrix and its bias")
    wanted = [found[0] if rows is None else rows, columns]
    if found != wanted:
        raise BackboneMismatch(f"{what} is {found}; this backbone takes {wanted}")


def _some(names: Mapping[str, Tensor]) -> str:
    """A few of the names, as a stranger's file spells them."""
    shown = ", ".join(repr(name[:80]) for name in sorted(names)[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown or "nothing else"
