"""The charts of a sweep: the ablations of the paper's Figures 3 and 4, score by setting, and all curves.

Figures 3 and 4: Liu et al., 2022, "P-Tuning: Prompt Tuning Can Be Comparable to Fine-tuning Across Scales and Tasks",
section 4.4. It refuses to know how settings were chosen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefixbank.trainer.report.axes import Axis, choice_axis, linear_axis, number_axis, step_axis
from prefixbank.trainer.report.charts import QUIET, Chart, Dot, Frame, Line, Whisker, tone_of
from prefixbank.trainer.report.curves import thinned
from prefixbank.trainer.report.wording import brief, score, spoken, value_of

if TYPE_CHECKING:
    from prefixbank.trainer.report.trials import Seeds, Trials, Tried

LENGTH, PARAMETERISATION = "prompt.length", "prompt.parameterisation"
LAYERS, LAYERS_FROM, LAYERS_COUNT = "prompt.layers", "prompt.layers.from", "prompt.layers.count"
MAX_CHOICES = 10
"""A setting of more choices is left to the table."""
MAX_CHOICE_CHARACTERS = 14
BEST_TONE = 1


def length_chart(trials: Trials, metric: str, parameterisation: str) -> Chart | None:
    """Figure 3: score by prompt length, a line for every parameterisation. None where no two lengths were tried.

    Args:
        parameterisation: of trials that do not say.
    """

    def line(tried: Tried) -> str:
        return str(tried.settings.get(PARAMETERISATION, parameterisation))

    lines = trials.best_by(line, LENGTH)
    title = "Prompt length and reparameterisation"
    return _ablation(title, "Figure 3", lines, metric, number_axis("prompt length", _values(lines)), trials)


def depth_chart(trials: Trials, metric: str) -> Chart | None:
    """Figure 4: score by how many layers have a prompt, counted from either end. None where no two were tried."""

    def line(tried: Tried) -> str | None:
        end = tried.settings.get(LAYERS_FROM)
        return None if end is None else f"from the {end}"

    lines = trials.best_by(line, LAYERS_COUNT)
    chart = _ablation(
        "Prompt depth", "Figure 4", lines, metric, number_axis("layers with a prompt", _values(lines)), trials
    )
    whole = [tried for tried in trials.complete if tried.settings.get(LAYERS) == "all"]
    if chart is None or not whole:
        return chart
    return _with_all_layers(chart, max(tried.score or 0.0 for tried in whole))


def setting_charts(trials: Trials, metric: str) -> list[Chart]:
    """Score against each setting that varies, a dot a trial; text settings of many values are left out."""
    charts = (_setting_chart(trials, name, metric) for name in trials.varying)
    return [chart for chart in charts if chart is not None]


def trial_curves(trials: Trials, metric: str) -> Chart | None:
    """The selection metric of every trial by epoch. None where no trial has epochs."""
    shown = [t for t in reversed(trials.tried) if any(metric in epoch.validation for epoch in t.trial.curve)]
    if not shown:
        return None
    lines = sorted((_curve(tried, metric) for tried in shown), key=lambda line: line.tone != QUIET)
    points = [point for line in lines for point in line.points]
    highest = max(1.0, *(y for _, y in points))
    frame = Frame(
        step_axis("epoch", [int(x) for x, _ in points]),
        linear_axis(spoken(metric), [y for _, y in points], highest=highest),
        width=960,
        height=340,
    )
    dots = tuple(
        Dot(*line.points[-1], _said(tried, metric), line.tone, 3.5, not tried.is_complete)
        for tried in shown
        for line in [_curve(tried, metric)]
    )
    summary = f"{spoken(metric)} on validation rows by epoch, of {len(shown)} trials."
    note = "A line a trial, its end a dot: hollow where it was stopped early. The best settings are in colour."
    return Chart("Curves of all trials", summary, frame, tuple(lines), dots, note=note)


def sparkline(tried: Tried, metric: str, low: float, high: float) -> str:
    """A trial's curve as an SVG path in a box of 80 by 18; empty for fewer than two epochs."""
    values = [epoch.validation[metric] for epoch in thinned(tried.trial.curve) if metric in epoch.validation]
    if len(values) < 2:
        return ""
    room = (high - low) or 1.0
    places = [(80 * i / (len(values) - 1), 17 - 16 * (value - low) / room) for i, value in enumerate(values)]
    return "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _values(lines: dict[str, list[tuple[Any, Seeds]]]) -> list[float]:
    return [value for points in lines.values() for value, _ in points] or [1]


def _ablation(
    title: str, figure: str, found: dict[str, list[tuple[Any, Seeds]]], metric: str, x_axis: Axis, trials: Trials
) -> Chart | None:
    if len(set(_values(found))) < 2:
        return None
    ends = [end for points in found.values() for _, seeds in points for end in _reach(seeds)]
    frame = Frame(x_axis, linear_axis(f"{spoken(metric)}, validation", ends), height=300)
    named = list(enumerate(found.items()))
    lines = tuple(Line(name, tuple((x, s.mean) for x, s in points), tone_of(i), i == 1) for i, (name, points) in named)
    dots = tuple(
        Dot(x, s.mean, f"{name}, {x_axis.name} {value_of(x)}: {_of(s)}", tone_of(i), 3.5)
        for i, (name, points) in named
        for x, s in points
    )
    whiskers = tuple(
        Whisker(x, *_reach(s), tone_of(i)) for i, (_, points) in named for x, s in points if s.std is not None
    )
    said = [f"{name}: " + ", ".join(f"{value_of(x)} {score(s.mean)}" for x, s in points) for _, (name, points) in named]
    note = _ablation_note(figure, bool(whiskers), trials)
    return Chart(
        title,
        f"{spoken(metric)} by {x_axis.name}. {'; '.join(said)}.",
        frame,
        lines,
        dots,
        whiskers=whiskers,
        note=note,
    )


def _ablation_note(figure: str, has_seeds: bool, trials: Trials) -> str:
    others = set(trials.varying) - {LENGTH, PARAMETERISATION, LAYERS, LAYERS_FROM, LAYERS_COUNT}
    means = " Means over seeds, with the standard deviation up and down." if has_seeds else ""
    best = " Each point is the best over the settings that vary beside it." if others else ""
    return f"As {figure} of the P-tuning v2 paper, on validation rows.{means}{best}"


def _with_all_layers(chart: Chart, value: float) -> Chart:
    """A level line for the prompt in all layers."""
    axis = chart.frame.x
    y_values = [chart.frame.y.low, chart.frame.y.high, value]
    frame = chart.frame._replace(y=linear_axis(chart.frame.y.name, y_values))
    line = Line("all layers", ((axis.low, value), (axis.high, value)), QUIET, is_dashed=True)
    return Chart(
        chart.title, chart.summary, frame, (*chart.lines, line), chart.dots, whiskers=chart.whiskers, note=chart.note
    )


def _setting_chart(trials: Trials, name: str, metric: str) -> Chart | None:
    shown = [tried for tried in reversed(trials.tried) if tried.score is not None and name in tried.settings]
    values = [tried.settings[name] for tried in shown]
    choices = sorted({value_of(value) for value in values})
    if len(choices) < 2:
        return None
    is_number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if not is_number and len(choices) > MAX_CHOICES:
        return None
    x_axis = number_axis(name, values) if is_number else choice_axis(name, [_short(choice) for choice in choices])
    frame = Frame(x_axis, linear_axis(spoken(metric), [t.score for t in shown if t.score is not None]), 360, 220)
    dots = tuple(
        Dot(
            value if is_number else choices.index(value_of(value)) + _jitter(tried.number),
            tried.score or 0.0,
            _said(tried, metric),
            BEST_TONE if tried.is_best else 0,
            5.0 if tried.is_best else 3.6,
            not tried.is_complete,
        )
        for tried, value in sorted(zip(shown, values, strict=True), key=lambda pair: pair[0].is_best)
    )
    return Chart(name, f"{spoken(metric)} of {len(shown)} trials by {name}.", frame, dots=dots)


def _curve(tried: Tried, metric: str) -> Line:
    points = tuple((e.epoch, e.validation[metric]) for e in thinned(tried.trial.curve) if metric in e.validation)
    return Line("", points, BEST_TONE if tried.is_best else QUIET)


def _reach(seeds: Seeds) -> tuple[float, float]:
    std = seeds.std or 0.0
    return seeds.mean - std, seeds.mean + std


def _of(seeds: Seeds) -> str:
    return score(seeds.mean) if seeds.std is None else f"{score(seeds.mean)} ± {score(seeds.std)}"


def _said(tried: Tried, metric: str) -> str:
    settings = ", ".join(f"{name.rpartition('.')[2]} {brief(value)}" for name, value in tried.settings.items())
    return f"trial {tried.number} ({tried.trial.state}): {spoken(metric)} {score(tried.score)}; {settings}"


def _jitter(number: int) -> float:
    """Sideways, so that dots of one choice lie beside each other; the same for the same trial."""
    return (number * 0.618 % 1 - 0.5) * 0.4


def _short(choice: str) -> str:
    return choice if len(choice) <= MAX_CHOICE_CHARACTERS else f"{choice[: MAX_CHOICE_CHARACTERS - 1]}…"
