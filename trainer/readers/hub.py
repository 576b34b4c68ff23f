"""Data sets of Hugging Face's hub, and folders like them, by the `datasets` library: rows of named fields.

Numbers of a ClassLabel become its names, lists of them too; -1, which the hub writes where there is no label, becomes
none. Nothing that a data set brings along is run. It refuses to know what fields mean.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefixbank.model_store.errors import InvalidData
from prefixbank.trainer.readers.tables import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prefixbank.trainer.recipe import Source

EXPORT = "refs/convert/parquet"
"""Where the hub keeps tables of data sets that come as a script."""


class HubRow(Row):
    """A row without a file."""

    @property
    def where(self) -> str:
        """For people: it goes with the example."""
        return self.place()


@dataclass(frozen=True, slots=True)
class HubTable:
    """One split."""

    name: str
    columns: Any
    """The split as the library holds it: a sequence of dicts, with `features`."""

    def rows(self) -> Iterator[Row]:
        """Every row, with labels by their names."""
        named = {name: convert for name, feature in self.columns.features.items() if (convert := _names(feature))}
        for number, fields in enumerate(self.columns, 1):
            converted = {name: convert(fields[name]) for name, convert in named.items()}
            yield HubRow(Path(self.name), number, {**fields, **converted})

    def digest(self) -> str:
        """SHA-256 of all rows as JSON, labels by their names."""
        found = hashlib.sha256()
        for row in self.rows():
            found.update(json.dumps(row.fields, sort_keys=True, default=str).encode() + b"\n")
        return found.hexdigest()


def open_hub(source: Source, root: Path) -> HubTable:
    """A split of a data set on the hub, or of a folder below `root`.

    Raises:
        InvalidData: the library is not there, or it finds no such data set or split.
    """
    try:
        import datasets
    except ImportError as error:
        raise InvalidData(
            f"{source.name}: the hub needs the library {error.name}: pip install prefixbank[hub]"
        ) from error
    assert source.hub is not None, "a source that is a file. This is a bug."
    place = str(root / source.hub) if (root / source.hub).is_dir() else source.hub
    # The export has a folder for each configuration, and no card that names them.
    config = "data_dir" if source.revision == EXPORT else "name"
    try:
        columns = datasets.load_dataset(place, split=source.split, revision=source.revision, **{config: source.config})
    except (OSError, RuntimeError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InvalidData(f"{source.name}: {_reason(error)}") from error
    return HubTable(source.name, columns)


def _reason(error: Exception) -> str:
    first = (str(error).splitlines() or [type(error).__name__])[0]
    if "scripts are no longer supported" in first:
        return f'the data set comes as a script, which is not run: try revision = "{EXPORT}", or its files'
    return first


def _names(feature: Any) -> Callable[[Any], Any] | None:
    """How values of a feature get names; None where they need none."""
    names = getattr(feature, "names", None)
    if names is not None:
        return lambda found: names[found] if isinstance(found, int) and 0 <= found < len(names) else None
    inner = _names(feature.feature) if hasattr(feature, "feature") else None
    return None if inner is None else lambda found: None if found is None else [inner(item) for item in found]
