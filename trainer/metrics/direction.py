"""Which way a metric is better: less of a loss, more of everything else."""


def lower_is_better(metric: str) -> bool:
    return metric == "loss"


def signed(metric: str, score: float) -> float:
    """A number of which more is better; of that number, the score again."""
    return -score if lower_is_better(metric) else score
