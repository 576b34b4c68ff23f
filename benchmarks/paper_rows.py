"""Rows: which recipe stands for which numbers of the paper.

It refuses to know how a recipe is run, and what a machine has.
"""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.paper_tables import BERT, LINEAR, ROBERTA, VERBALIZER

PROMPT = "PT-2"


class Cell(NamedTuple):
    """A place in the paper's tables."""

    table: int | None
    """None for what only the authors' README reports."""
    backbone: str
    task: str
    method: str = PROMPT


class Row(NamedTuple):
    """One run and what its score stands beside."""

    name: str
    recipe: str
    """Of examples/recipes/paper, without its ending."""
    cells: tuple[Cell, ...]
    data_set: str
    """Key of the layouts in `paper_layouts`."""
    metrics: tuple[str, ...] = ("accuracy",)
    """Of the report, in the order of the table's measures."""
    settings: tuple[str, ...] = ()
    """What the row changes in the recipe, as `--set` of `prefixbank train`."""


def _row(recipe: str, *cells: Cell, data_set: str, metrics: tuple[str, ...] = ("accuracy",)) -> Row:
    return Row(recipe, recipe, cells, data_set, metrics)


def _verbalizer(recipe: str, task: str, template: str, words: str) -> Row:
    settings = ('head.kind="verbalizer"', f"head.template={template}", f"head.words={words}")
    cells = (Cell(5, ROBERTA, task, VERBALIZER),)
    return Row(f"{recipe}+verbalizer", recipe, cells, recipe.partition("_")[0], settings=settings)


SPANS, ANSWERS = ("span_f1",), ("exact", "f1")
ROWS = (
    _row("boolq_bert", Cell(1, BERT, "BoolQ"), data_set="boolq"),
    _row("boolq_roberta", Cell(1, ROBERTA, "BoolQ"), Cell(5, ROBERTA, "BoolQ", LINEAR), data_set="boolq"),
    _row("rte_bert", Cell(1, BERT, "RTE"), data_set="rte"),
    _row("rte_roberta", Cell(1, ROBERTA, "RTE"), Cell(5, ROBERTA, "RTE", LINEAR), data_set="rte"),
    _row("copa_bert", Cell(None, BERT, "COPA"), data_set="copa"),
    _row("copa_roberta", Cell(None, ROBERTA, "COPA"), data_set="copa"),
    _row("wic_bert", Cell(None, BERT, "WiC"), data_set="wic"),
    _row("wic_roberta", Cell(None, ROBERTA, "WiC"), data_set="wic"),
    _row("wsc_bert", Cell(None, BERT, "WSC"), data_set="wsc"),
    _row("wsc_roberta", Cell(None, ROBERTA, "WSC"), data_set="wsc"),
    _row("conll03_roberta", Cell(2, ROBERTA, "CoNLL03"), data_set="conll03", metrics=SPANS),
    _row("ontonotes_bert", Cell(2, BERT, "OntoNotes 5.0"), data_set="ontonotes", metrics=SPANS),
    _row("ontonotes_roberta", Cell(2, ROBERTA, "OntoNotes 5.0"), data_set="ontonotes", metrics=SPANS),
    _row("conll04_bert", Cell(2, BERT, "CoNLL04"), data_set="conll04", metrics=SPANS),
    _row("conll04_roberta", Cell(2, ROBERTA, "CoNLL04"), data_set="conll04", metrics=SPANS),
    _row("squad_roberta", Cell(3, ROBERTA, "SQuAD 1.1"), data_set="squad", metrics=ANSWERS),
    _row("squad_v2_roberta", Cell(3, ROBERTA, "SQuAD 2.0"), data_set="squad_v2", metrics=ANSWERS),
    Row(  # the recipe keeps the script's roberta-large; this cell is BERT's
        "conll12_bert",
        "conll12_bert",
        (Cell(4, BERT, "CoNLL12"),),
        "conll12",
        SPANS,
        ("backbone=google-bert/bert-large-uncased",),
    ),
    _row("conll12_roberta", Cell(4, ROBERTA, "CoNLL12"), data_set="conll12", metrics=SPANS),
    _row("conll05_roberta", Cell(4, ROBERTA, "CoNLL05 WSJ"), data_set="conll05", metrics=SPANS),
    Row(
        "conll05_roberta+brown",
        "conll05_roberta",
        (Cell(4, ROBERTA, "CoNLL05 Brown"),),
        "conll05_brown",
        SPANS,
        ('data.test="data/CoNLL05/conll05.test.brown.txt"',),
    ),
    _verbalizer(
        "rte_roberta",
        "RTE",
        '"{text} Question: {text_pair} True or false? {mask}."',
        '{entailment = "true", not_entailment = "false"}',
    ),
    _verbalizer("boolq_roberta", "BoolQ", '"{text}? {mask}. {text_pair}"', '{yes = "true", no = "false"}'),
)
"""In the order of the paper's tables. The verbalizers' words are the paper's, the templates ours: it gives none."""
