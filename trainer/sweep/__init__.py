"""Sweeps: many trials of a recipe packed through one backbone, and the best of them run once per seed.

`space` says what varies, `study` what is tried next, `search` keeps the trials of one recipe, `referee` ends those that
are behind or out of time, `finals` runs the best, `sweep` puts them together.
"""

from prefixbank.trainer.sweep.finals import Result
from prefixbank.trainer.sweep.search import Job
from prefixbank.trainer.sweep.sweep import sweep
from prefixbank.trainer.sweep.time_limit import TimeLimit, seconds_of

__all__ = ["Job", "Result", "TimeLimit", "seconds_of", "sweep"]
