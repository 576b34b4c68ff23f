"""A store's records as tables and JSON. Text in, text out: it prints nothing and reads no store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefixbank.cli_common import SHORT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefixbank.model_store.alias import AliasRecord
    from prefixbank.model_store.inventory import RevisionRecord, TaskRecord

NOTHING = "-"


def tasks_table(records: Sequence[TaskRecord]) -> str:
    """One line per task; family and labels are those of the live revision, or of the newest."""
    header = ("TASK", "LIVE", "OTHER ALIASES", "FAMILY", "LABELS", "REVISIONS", "PUBLISHED")
    return _table(header, [_task_row(record) for record in records])


def aliases_table(record: TaskRecord) -> str:
    """One line per alias, with where it pointed before."""
    rows = [_alias_row(name, alias) for name, alias in sorted(record.aliases.items())]
    return _table(("ALIAS", "REVISION", "SINCE", "BEFORE"), rows)


def revisions_table(record: TaskRecord) -> str:
    """One line per revision, newest first."""
    header = ("REVISION", "PUBLISHED", "SIZE", "FAMILY", "LABELS", "PREFIX", "METRICS")
    return _table(header, [_revision_row(revision) for revision in record.revisions])


def faults(record: TaskRecord) -> list[str]:
    """What is broken in a task, one line each."""
    return [*record.faults, *(f"{r.revision[:SHORT]}: {r.fault}" for r in record.revisions if r.fault)]


def summary(record: TaskRecord) -> dict[str, Any]:
    """A task for `list --json`."""
    return {
        "task": str(record.address),
        "aliases": {name: alias.revision for name, alias in sorted(record.aliases.items())},
        "revisions": [_revision(revision) for revision in record.revisions],
        "faults": list(record.faults),
    }


def details(record: TaskRecord) -> dict[str, Any]:
    """A task for `show --json`: its aliases have their history."""
    aliases = {name: alias.model_dump(mode="json") for name, alias in sorted(record.aliases.items())}
    return summary(record) | {"aliases": aliases}


def _revision(record: RevisionRecord) -> dict[str, Any]:
    said = {"revision": record.revision, "published": record.published.isoformat(), "bytes": record.num_bytes}
    manifest = record.manifest
    if manifest is None:
        return said | {"fault": record.fault}
    return said | {
        "family": manifest.family.value,
        "labels": list(manifest.labels),
        "prefix_length": manifest.prefix_length,
        "layers": list(manifest.layers),
        "shallow_length": manifest.shallow_length,
        "preprocessing": manifest.preprocessing.model_dump(mode="json"),
        "backbone": manifest.backbone.model_dump(mode="json"),
        "metrics": manifest.metrics,
        "created": manifest.provenance.created,
    }


def _task_row(record: TaskRecord) -> tuple[str, ...]:
    live = record.aliases.get("live")
    others = ", ".join(name for name in sorted(record.aliases) if name != "live")
    newest = record.revisions[0] if record.revisions else None
    served = next((r for r in record.revisions if live is not None and r.revision == live.revision), newest)
    manifest = served.manifest if served else None
    return (
        str(record.address),
        live.revision[:SHORT] if live else NOTHING,
        others or NOTHING,
        manifest.family.value if manifest else "(broken)",
        str(len(manifest.labels)) if manifest else NOTHING,
        str(len(record.revisions)),
        f"{newest.published:%Y-%m-%d %H:%M}" if newest else NOTHING,
    )


def _alias_row(name: str, alias: AliasRecord) -> tuple[str, ...]:
    in_force = [entry for entry in alias.history if not entry.rolled_back]
    before = [entry.revision[:SHORT] for entry in reversed(in_force[:-1])]
    return (name, alias.revision[:SHORT], in_force[-1].promoted[:19], ", ".join(before[:4]) or NOTHING)


def _revision_row(record: RevisionRecord) -> tuple[str, ...]:
    published = f"{record.published:%Y-%m-%d %H:%M}"
    manifest = record.manifest
    if manifest is None:
        return (record.revision[:SHORT], published, NOTHING, "(broken)", NOTHING, NOTHING, NOTHING)
    deep = f"{manifest.prefix_length} x {len(manifest.layers)} layers"
    shallow = f"{manifest.shallow_length} before the text" if manifest.shallow_length else "none"
    metrics = ", ".join(f"{name} {number:.4g}" for name, number in sorted(manifest.metrics.items()))
    size = f"{record.num_bytes / 1024:.0f} KiB"
    return (
        record.revision[:SHORT],
        published,
        size,
        manifest.family.value,
        str(len(manifest.labels)),
        deep if manifest.layers else shallow,
        metrics or NOTHING,
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, two spaces apart: readable, and cut by awk."""
    lines = [header, *([_printable(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in padded)


def _printable(cell: str) -> str:
    """A cell without control characters: what a manifest says must not steer a terminal."""
    return "".join(character if character.isprintable() else "?" for character in cell)
