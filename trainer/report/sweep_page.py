"""sweep.html: one page from sweep.json alone.

It refuses to know how trials were chosen, trained and pruned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefixbank.trainer.report import wording
from prefixbank.trainer.report.page import Fact, environment, sections
from prefixbank.trainer.report.schema import Sweep, parse
from prefixbank.trainer.report.sweep_charts import depth_chart, length_chart, setting_charts, sparkline, trial_curves
from prefixbank.trainer.report.trials import COMPLETE, Trials, trials_of

if TYPE_CHECKING:
    from collections.abc import Mapping


def render_sweep(sweep: Mapping[str, Any], where: str = "sweep") -> str:
    """The page of a sweep; `where` begins the message of a refusal.

    Raises:
        InvalidReport: the record lacks what a page needs.
    """
    record = parse(Sweep, sweep, where)
    trials, metric = trials_of(record), record.metric
    usual = {"parameterisation": "embedding", "layers": "all"} | (record.recipe.get("prompt") or {})
    ablations = [
        length_chart(trials, metric, str(usual["parameterisation"])),
        depth_chart(trials, metric, str(usual["layers"])),
    ]
    return (
        environment()
        .get_template("sweep.html")
        .render(
            sweep=record,
            title=_title(record),
            facts=_facts(record, trials),
            best=None if record.best is None else dict(wording.flat(record.best.settings)),
            trials=trials,
            ablations=[chart for chart in ablations if chart is not None],
            settings_charts=setting_charts(trials, metric),
            curves=trial_curves(trials, metric),
            groups=[group for group in trials.over_seeds() if group.std is not None],
            sparklines=_sparklines(trials, metric),
            settings=sections(record.recipe, "recipe"),
            surroundings=sections(record.environment, "machine"),
        )
    )


def _title(sweep: Sweep) -> str:
    return f"Sweep of {wording.spoken(str(sweep.recipe.get('family', 'a recipe')))}"


def _facts(sweep: Sweep, trials: Trials) -> list[Fact]:
    counts = [(trials.count(state), state) for state in ("pruned", "failed", "running")]
    rest = ", ".join(f"{count} {state}" for count, state in counts if count)
    seconds = sum(trial.seconds or 0.0 for trial in sweep.trials)
    complete = f"{trials.count(COMPLETE)} complete"
    facts = [Fact("trials", f"{len(sweep.trials):,}", f"{complete}, {rest}" if rest else complete)]
    if seconds:
        facts.append(Fact("time of all trials", wording.duration(seconds), "summed; packed trials share it"))
    epochs = sum(trial.epochs or 0 for trial in sweep.trials)
    if epochs:
        facts.append(Fact("epochs", f"{epochs:,}", "of all trials"))
    names = ", ".join(name.removeprefix("prompt.").removeprefix("optimiser.") for name in trials.varying)
    return [*facts, Fact("settings that vary", str(len(trials.varying)), names)]


def _sparklines(trials: Trials, metric: str) -> dict[int, str]:
    """Trial number to its curve, all on one scale."""
    values = [e.validation[metric] for t in trials.tried for e in t.trial.curve if metric in e.validation]
    low, high = min(values, default=0.0), max(values, default=1.0)
    return {tried.number: sparkline(tried, metric, low, high) for tried in trials.tried}
