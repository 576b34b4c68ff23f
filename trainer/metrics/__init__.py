"""Official metrics, each from counts or texts, with its source; and their confidence by bootstrap.

`classification` for labels, `squad` for answers, `roles` for semantic roles, `calibration` for how far confidence
may be believed, `bootstrap` for intervals. Spans of named entities are counted in `model_store/tasks/spans.py`,
because the server reads tags by the same rule. Every score is a share of one, not of a hundred.
"""

from prefixbank.trainer.metrics.bootstrap import LEVEL, NUM_SAMPLES, confusion_interval, interval, span_interval
from prefixbank.trainer.metrics.classification import accuracy, binary_f1, confusion, macro_f1, matthews, micro_f1
from prefixbank.trainer.metrics.direction import lower_is_better, signed

__all__ = [
    "LEVEL",
    "NUM_SAMPLES",
    "accuracy",
    "binary_f1",
    "confusion",
    "confusion_interval",
    "interval",
    "lower_is_better",
    "macro_f1",
    "matthews",
    "micro_f1",
    "signed",
    "span_interval",
]
