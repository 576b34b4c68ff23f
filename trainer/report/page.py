"""report.html: one page from report.json alone, so that old reports can be drawn.

The page loads nothing and runs nothing: one file, no script, and a policy that forbids both. It refuses to know how
the numbers came about.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prefixbank.trainer.report import wording
from prefixbank.trainer.report.curves import curve_charts, thinned
from prefixbank.trainer.report.details import behind
from prefixbank.trainer.report.schema import Details, Report, parse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
METHODS = {
    "prompt": "with a deep prompt",
    "shallow": "with a shallow prompt",
    "head": "with a head alone",
    "full": "by full fine-tuning",
}


class Fact(NamedTuple):
    """A number beside the headline."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Headline:
    """The result of a run."""

    metric: str
    value: float | None
    """None where the reported split lacks the metric."""
    interval: tuple[float, float] | None
    split: str
    rows: int | None

    @property
    def is_share(self) -> bool:
        """Whether value and interval can be drawn between 0 and 1."""
        numbers = (self.value, *(self.interval or ()))
        return all(number is not None and 0 <= number <= 1 for number in numbers)


class MetricRow(NamedTuple):
    """One metric on every evaluated split."""

    name: str
    cells: list[tuple[float | None, tuple[float, float] | None]]


def render(report: Mapping[str, Any], where: str = "report") -> str:
    """The page of a report; `where` begins the message of a refusal.

    Raises:
        InvalidReport: the report lacks what a page needs.
    """
    record = parse(Report, report, where)
    splits = _splits(record)
    chosen = record.selection.epoch
    return (
        environment()
        .get_template("report.html")
        .render(
            report=record,
            title=_title(record),
            subtitle=_subtitle(record),
            headline=_headline(record),
            facts=_facts(record),
            splits=splits,
            metric_rows=_metric_rows(record, splits),
            charts=curve_charts(record.curve, record.selection.metric, chosen),
            epochs=thinned(record.curve, chosen),
            details={name: behind(record.details.get(name, Details())) for name in splits},
            settings=sections(record.recipe, "recipe"),
            surroundings=sections({**record.environment, "backbone": record.backbone}, "machine"),
        )
    )


@cache
def environment() -> Environment:
    """Templates; whatever they are given is text, never markup."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {name: getattr(wording, name) for name in ("spoken", "title_of", "score", "share", "duration")}
    made.filters |= {"value_of": wording.value_of, "brief": wording.brief, "when": wording.when}
    return made


def _title(report: Report) -> str:
    family = wording.title_of(str(report.recipe.get("family", "run")))
    method = str(report.recipe.get("method", "prompt"))
    return f"{family} {METHODS.get(method, method)}"


def _subtitle(report: Report) -> list[str]:
    """What was trained, in a few words each."""
    prompt = report.recipe.get("prompt") or {}
    said = [f"{report.backbone.get('name', 'backbone')}, {report.backbone.get('architecture', 'unknown architecture')}"]
    if report.recipe.get("method", "prompt") in ("prompt", "shallow") and "length" in prompt:
        said.append(f"{prompt['length']} prompt tokens")
    if "seed" in report.recipe:
        said.append(f"seed {report.recipe['seed']}")
    return [*said, wording.when(report.created)] if report.created else said


def _headline(report: Report) -> Headline:
    split, metric = report.reported_split, report.selection.metric
    rows = report.data.splits[split].rows if split in report.data.splits else None
    value = report.metrics.get(split, {}).get(metric)
    return Headline(metric, value, report.confidence.intervals.get(split, {}).get(metric), split, rows)


def _facts(report: Report) -> list[Fact]:
    facts = []
    if report.trained_parameters is not None:
        part = "" if report.trained_share is None else f"{wording.share(report.trained_share)} of the backbone"
        facts.append(Fact("trained parameters", f"{report.trained_parameters:,}", part))
    if report.train_seconds is not None:
        speed = report.train_tokens_per_second
        note = f"{speed:,.0f} tokens/s" if speed else ""
        facts.append(Fact("training", wording.duration(report.train_seconds), note))
    if report.curve:
        kept = f"of {len(report.curve)}, by {report.selection.split} {wording.spoken(report.selection.metric)}"
        facts.append(Fact("epoch kept", str(report.selection.epoch), kept))
    check = report.serving_check
    if check is not None:
        apart = f"{check.logit_distance:.0e} apart" if check.logit_distance else "equal"
        note = f"logits {apart} on {check.rows:,} rows"
        facts.append(Fact("server answers", wording.score(check.served), note))
    return facts


def _splits(report: Report) -> list[str]:
    """Evaluated splits, the reported one first."""
    return sorted(report.metrics, key=lambda name: name != report.reported_split)


def _metric_rows(report: Report, splits: list[str]) -> list[MetricRow]:
    """Every metric, the selection metric first."""
    names = list(dict.fromkeys(name for split in splits for name in report.metrics[split]))
    intervals = report.confidence.intervals
    return [
        MetricRow(name, [(report.metrics[s].get(name), intervals.get(s, {}).get(name)) for s in splits])
        for name in sorted(names, key=lambda name: name != report.selection.metric)
    ]


def sections(table: Mapping[str, Any], name: str) -> list[tuple[str, list[tuple[str, Any]]]]:
    """A table by section; what stands in none comes first, under `name`."""
    plain = [(key, value) for key, value in table.items() if not isinstance(value, dict)]
    tables = [(key, list(wording.flat(value))) for key, value in table.items() if isinstance(value, dict) and value]
    return [(name, plain), *tables] if plain else tables
