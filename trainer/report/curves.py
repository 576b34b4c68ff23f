"""The charts of a run's epochs: losses, and the metrics on validation rows.

It refuses to know how an epoch was trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefixbank.trainer.report.axes import linear_axis, step_axis
from prefixbank.trainer.report.charts import Chart, Frame, Line, Rule, extent, readings, tone_of
from prefixbank.trainer.report.wording import score, spoken, title_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefixbank.trainer.report.axes import Axis
    from prefixbank.trainer.report.schema import Epoch

MAX_EPOCHS = 200
"""Longer curves are thinned to so many points, the first and the last among them."""
MAX_METRICS = 4
"""Lines of the second chart."""


def curve_charts(curve: Sequence[Epoch], metric: str, chosen: int | None) -> list[Chart]:
    """Loss, then metrics with the selection metric first. None of a run without epochs."""
    if not curve:
        return []
    epochs = thinned(curve, chosen)
    charts = [_loss_chart(epochs, chosen)]
    if any(name != "loss" for name in epochs[0].validation):
        charts.append(_metric_chart(epochs, metric, chosen))
    return charts


def thinned(curve: Sequence[Epoch], chosen: int | None = None) -> list[Epoch]:
    """Evenly many epochs of a long curve, and the chosen one."""
    if len(curve) <= MAX_EPOCHS:
        return list(curve)
    kept = {round(i * (len(curve) - 1) / (MAX_EPOCHS - 1)) for i in range(MAX_EPOCHS)}
    return [epoch for i, epoch in enumerate(curve) if i in kept or epoch.epoch == chosen]


def metrics_of(epochs: Sequence[Epoch], first: str) -> list[str]:
    """Names of the validation metrics other than the loss, `first` before all others.

    Of several data sets, `mean` is next, then each one's own `first`.
    """
    names = [name for name in epochs[0].validation if name != "loss"]
    return sorted(names, key=lambda name: (name != first, name != "mean", not name.endswith(f".{first}")))


def _loss_chart(epochs: Sequence[Epoch], chosen: int | None) -> Chart:
    lines = [Line("training", tuple((e.epoch, e.train_loss) for e in epochs), 0)]
    held = tuple((e.epoch, e.validation["loss"]) for e in epochs if "loss" in e.validation)
    if held:
        lines.append(Line("validation", held, 1, is_dashed=True))
    frame = _frame(epochs, linear_axis("loss", (y for line in lines for _, y in line.points), lowest=0.0))
    said = "; ".join(f"{line.name} loss {extent(y for _, y in line.points)}" for line in lines)
    return Chart(
        "Loss",
        f"Loss by epoch: {said}.",
        frame,
        tuple(lines),
        rules=_chosen(epochs, chosen),
        readings=readings(frame, [(e.epoch, _loss_reading(e)) for e in epochs]),
    )


def _metric_chart(epochs: Sequence[Epoch], metric: str, chosen: int | None) -> Chart:
    names = metrics_of(epochs, metric)[:MAX_METRICS]
    lines = tuple(
        Line(spoken(name), tuple((e.epoch, e.validation[name]) for e in epochs if name in e.validation), tone_of(i))
        for i, name in enumerate(names)
    )
    values = [y for line in lines for _, y in line.points]
    y_name = spoken(names[0]) if len(names) == 1 else "score"
    frame = _frame(epochs, linear_axis(y_name, values, highest=max(1.0, *values)))
    said = "; ".join(f"{line.name} {extent(y for _, y in line.points)}" for line in lines)
    return Chart(
        "Validation" if len(names) > 1 else f"{title_of(names[0])} on validation rows",
        f"Metrics on validation rows by epoch: {said}.",
        frame,
        lines,
        rules=_chosen(epochs, chosen),
        readings=readings(frame, [(e.epoch, _metric_reading(e, names)) for e in epochs]),
    )


def _frame(epochs: Sequence[Epoch], y_axis: Axis) -> Frame:
    return Frame(step_axis("epoch", [epoch.epoch for epoch in epochs]), y_axis)


def _chosen(epochs: Sequence[Epoch], chosen: int | None) -> tuple[Rule, ...]:
    return tuple(Rule(epoch.epoch, "kept") for epoch in epochs if epoch.epoch == chosen)


def _loss_reading(epoch: Epoch) -> str:
    held = epoch.validation.get("loss")
    return f"epoch {epoch.epoch}: training {score(epoch.train_loss)}" + (f", validation {score(held)}" if held else "")


def _metric_reading(epoch: Epoch, names: Sequence[str]) -> str:
    said = ", ".join(f"{spoken(name)} {score(epoch.validation[name])}" for name in names if name in epoch.validation)
    return f"epoch {epoch.epoch}: {said}"
