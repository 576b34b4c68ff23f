"""Shared rows: data sets read and tokenised once for all trials that read them alike.

It refuses to know how settings are chosen and what trials do with rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefixbank.trainer.prepare import Prepared, check_length, prepare

if TYPE_CHECKING:
    from pathlib import Path

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.trainer.recipe import Recipe

UNREAD: dict[str, Any] = {
    "seed": True,
    "prompt": True,
    "optimiser": True,
    "method": True,
    "sweep": True,
    "dtype": True,
    "selection": {"patience"},
    "head": {"dropout", "pooler"},
}
"""Fields on which rows do not depend; of two recipes that differ in no others, the rows are the same objects."""


class SharedRows:
    """Rows by what recipes say of them.

    Args:
        root: what paths are relative to.
    """

    def __init__(self, root: Path, backbone: Backbone) -> None:
        self.root = root
        self.backbone = backbone
        self._prepared: dict[str, Prepared] = {}

    def of(self, recipe: Recipe) -> Prepared:
        """The rows of a recipe.

        Raises:
            InvalidData: a file cannot be read, or has too many bad rows.
            TrainingError: there is nothing to tell apart, or rows or prompt do not fit the backbone.
        """
        for part in recipe.parts.values():
            check_length(part, self.backbone)
        key = recipe.drawn.model_dump_json(exclude=UNREAD)
        if key not in self._prepared:
            self._prepared[key] = prepare(recipe, self.root, self.backbone)
        return self._prepared[key]
