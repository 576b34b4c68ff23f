"""The charts of a sweep: the ablations of the paper's Figures 3 and 4, score by setting, and all curves.

Figures 3 and 4: Liu et al., 2022, "P-Tuning: Prompt Tuning Can Be Comparable to Fine-tuning Across Scales and Tasks",
section 4.4. It refuses to know how settings were chosen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefixbank.trainer.report.axes import choice_axis, linear_axis, number_axis, step_axis
from prefixbank.trainer.report.charts import QUIET, Chart, Dot, Frame, Line, Whisker, tone_of
from prefixbank.trainer.report.curves import thinned
from prefixbank.trainer.report.trials import over_seeds
from prefixbank.trainer.report.wording import brief, score, spoken, value_of

if TYPE_CHECKING:
    from prefixbank.trainer.report.trials import Ablation, Seeds, Trials, Tried

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

    found = trials.ablation(LENGTH, line, (LENGTH, PARAMETERISATION))
    return _ablation_chart("Prompt length and reparameterisation", "Figure 3", found, metric, "prompt length")


def depth_chart(trials: Trials, metric: str, layers: str) -> Chart | None:
    """Figure 4: score by how many layers have a prompt, counted from either end. None where no two were tried.

    Args:
        layers: of trials that do not say.
    """

    def line(tried: Tried) -> str | None:
        end = tried.settings.get(LAYERS_FROM)
        return None if end is None else f"from the {end}"

    apart = (LAYERS, LAYERS_FROM, LAYERS_COUNT)
    found = trials.ablation(LAYERS_COUNT, line, apart)
    chart = _ablation_chart("Prompt depth", "Figure 4", found, metric, "layers with a prompt")
    whole = [
        t
        for t in trials.complete
        if line(t) is None and t.settings.get(LAYERS, layers) == "all" and t.beside(apart) in found.others
    ]
    return chart if chart is None or not whole else _with_all_layers(chart, trials.best_of(over_seeds(whole)).mean)


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


def _ablation_chart(title: str, figure: str, found: Ablation, metric: str, x_name: str) -> Chart | None:
    """Lines with dots, and whiskers where there are seeds. None of fewer than two values of x."""
    points = [(i, name, x, seeds) for i, (name, ps) in enumerate(found.lines.items()) for x, seeds in ps]
    values = [x for _, _, x, _ in points]
    if len(set(values)) < 2:
        return None
    ends = [end for *_, seeds in points for end in _reach(seeds)]
    frame = Frame(number_axis(x_name, values), linear_axis(f"{spoken(metric)}, validation", ends), height=300)
    lines = enumerate(found.lines.items())
    whiskers = tuple(Whisker(x, *_reach(s), tone_of(i)) for i, _, x, s in points if s.std is not None)
    said = [f"{name}, {value_of(x)}: {_of(seeds)}" for _, name, x, seeds in points]
    return Chart(
        title,
        f"{spoken(metric)} by {x_name}. " + "; ".join(said),
        frame,
        tuple(Line(name, tuple((x, s.mean) for x, s in ps), tone_of(i), i == 1) for i, (name, ps) in lines),
        tuple(Dot(x, s.mean, says, tone_of(i), 3.5) for (i, _, x, s), says in zip(points, said, strict=True)),
        whiskers=whiskers,
        note=_ablation_note(figure, bool(whiskers), len(found.others) > 1),
    )


def _ablation_note(figure: str, has_seeds: bool, has_others: bool) -> str:
    means = " Means over seeds, with the standard deviation up and down." if has_seeds else ""
    best = " Each point is the best over the settings that vary beside it." if has_others else ""
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
