"""F1 of semantic roles, equal to srl-eval.pl of CoNLL-2005 (Carreras and Màrquez, 2005).

Its definition: an argument is right when its role and all its words are; a torn argument, X and its continuations C-X,
is one argument and right only when every piece is. A reference R-X is a role of its own. The predicate, V with C-V,
is read but counts in neither precision nor recall. F1 is micro-averaged over all predicates.

P-tuning v2's published numbers come from seqeval instead, which counts V, easy as it is, and every piece by itself:
`span_scores` of the tags gives those, and they are higher.
It refuses to know logits, tokens and files.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from prefixbank.model_store.tasks.semantic_roles import VERB, arguments_of
from prefixbank.model_store.tasks.spans import SpanScores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefixbank.model_store.tasks.semantic_roles import Argument


def role_scores(gold: Sequence[str], predicted: Sequence[str]) -> SpanScores:
    """Counts of one predicate's arguments from IOB2 tags; add up those of many."""
    true, found = _counted(gold), _counted(predicted)
    return SpanScores(len(true), len(found), len(true & found))


def total_scores(scores: Sequence[SpanScores]) -> SpanScores:
    """The counts of many predicates together."""
    return SpanScores(*(sum(counts) for counts in zip(*scores, strict=True))) if scores else SpanScores(0, 0, 0)


def scores_by_role(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, SpanScores]:
    """Counts of many predicates' arguments by their role."""
    counters: tuple[Counter[str], Counter[str], Counter[str]] = (Counter(), Counter(), Counter())
    for gold_tags, predicted_tags in zip(gold, predicted, strict=True):
        true, found = _counted(gold_tags), _counted(predicted_tags)
        for counter, arguments in zip(counters, (true, found, true & found), strict=True):
            counter.update(argument.role for argument in arguments)
    roles = sorted(counters[0].keys() | counters[1].keys())
    return {role: SpanScores(*(counter[role] for counter in counters)) for role in roles}


def _counted(tags: Sequence[str]) -> set[Argument]:
    return {argument for argument in arguments_of(tags) if argument.role != VERB}
