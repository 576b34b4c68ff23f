"""Defaults: from a file of rows and a time to a recipe - what the columns mean, what fits into the time, what to try.

`sniff` says what a file is, `guess` what it means, `plan` what there is time for, `choose` puts them together.
"""

from prefixbank.trainer.defaults.choose import RECIPE_FILE, Choice, Request, begin, choose, resumed

__all__ = ["RECIPE_FILE", "Choice", "Request", "begin", "choose", "resumed"]
