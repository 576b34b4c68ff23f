"""The numbers of the P-Tuning v2 paper and of its authors' repository, as data.

Tables 1 to 5 of Liu et al., "P-Tuning v2: Prompt Tuning Can Be Comparable to Fine-tuning Universally Across Scales and
Tasks" (ACL 2022), and the "Implemented Results" of THUDM/P-tuning-v2's README at b1520c9. Figures 1, 3 and 4 give no
numbers in print, so they are not here. It refuses to know recipes, and what this project reaches.

FT is fine-tuning, PT the shallow prompts of P-tuning and Lester et al., PT-2 P-Tuning v2, MPT-2 its multi-task form.
"""

from __future__ import annotations

from typing import NamedTuple

BERT, ROBERTA, DEBERTA = "BERT-large", "RoBERTa-large", "DeBERTa-xlarge"
GLM_2B, GLM_10B = "GLM-xlarge", "GLM-xxlarge"
NUM_PARAMETERS = {BERT: "335M", ROBERTA: "355M", DEBERTA: "750M", GLM_2B: "2B", GLM_10B: "10B"}
LINEAR, VERBALIZER = "CLS & linear head", "Verbalizer & LM head"

Score = tuple[float, ...]
"""Per cent, one for each of the table's measures; empty where the paper prints a dash."""


class Table(NamedTuple):
    """One table of the paper."""

    number: int
    about: str
    measures: tuple[str, ...]
    """What each score is, as the paper calls it."""
    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    scores: dict[tuple[str, str, str], Score]
    """By backbone, task and method."""

    @property
    def backbones(self) -> tuple[str, ...]:
        """In the order of the table's rows."""
        return tuple(dict.fromkeys(backbone for backbone, _, _ in self.scores))


def _table(
    number: int,
    about: str,
    measures: tuple[str, ...],
    methods: tuple[str, ...],
    tasks: tuple[str, ...],
    lines: dict[str, str],
) -> Table:
    """A table from its printed lines: bars part tasks, blanks methods, a slash measures, a dash stands for nothing."""
    scores = {}
    for backbone, line in lines.items():
        for task, cells in zip(tasks, line.split("|"), strict=True):
            for method, cell in zip(methods, cells.split(), strict=True):
                score = () if cell == "-" else tuple(float(value) for value in cell.split("/"))
                assert len(score) in (0, len(measures)), f"table {number}: {cell}"
                scores[backbone, task, method] = score
    return Table(number, about, measures, methods, tasks, scores)


TABLES = (
    _table(
        1,
        "GLUE and SuperGLUE, development sets",
        ("accuracy",),
        ("FT", "PT", "PT-2"),
        ("SST-2", "MNLI-m", "RTE", "BoolQ", "CB"),
        {
            BERT: "93.2 92.4 93.6 | 86.6 75.6 85.8 | 70.4 53.5 78.3 | 77.7 67.2 75.8 | 94.6 80.4 94.6",
            ROBERTA: "96.4 95.3 96.3 | 90.2 83.8 90.4 | 86.6 58.8 88.4 | 86.9 62.3 84.8 | 98.2 71.4 100",
            GLM_2B: "- - - | - - - | 90.3 85.6 90.3 | 88.3 79.7 87.0 | 96.4 76.4 96.4",
            GLM_10B: "- - - | - - - | 93.1 89.9 93.1 | 88.7 88.8 88.8 | 98.7 98.2 96.4",
        },
    ),
    _table(
        2,
        "named entities, test sets",
        ("micro F1",),
        ("FT", "PT", "PT-2", "MPT-2"),
        ("CoNLL03", "OntoNotes 5.0", "CoNLL04"),
        {
            BERT: "92.8 81.9 90.2 91.0 | 89.2 74.6 86.4 86.3 | 85.6 73.6 84.5 86.6",
            ROBERTA: "92.6 86.1 92.4 92.8 | 89.8 80.8 89.4 89.8 | 88.8 76.2 87.8 90.6",
            DEBERTA: "93.1 90.2 93.1 93.1 | 90.4 85.1 90.4 90.5 | 89.1 82.4 86.5 90.1",
        },
    ),
    _table(
        3,
        "question answering, development sets",
        ("EM", "F1"),
        ("FT", "PT", "PT-2", "MPT-2"),
        ("SQuAD 1.1", "SQuAD 2.0"),
        {
            BERT: "84.2/91.1 1.0/8.5 77.8/86.0 82.3/89.6 | 78.7/81.9 50.2/50.2 69.7/73.5 72.7/75.9",
            ROBERTA: "88.9/94.6 1.2/12.0 88.1/94.1 88.0/94.1 | 86.5/89.4 50.2/50.2 82.1/85.5 83.4/86.7",
            DEBERTA: "90.1/95.5 2.4/19.0 90.4/95.7 89.6/95.4 | 88.3/91.1 50.2/50.2 88.4/91.1 88.1/90.8",
        },
    ),
    _table(
        4,
        "semantic roles, test sets",
        ("F1",),
        ("FT", "PT", "PT-2", "MPT-2"),
        ("CoNLL12", "CoNLL05 WSJ", "CoNLL05 Brown"),
        {
            BERT: "84.9 64.5 83.2 85.1 | 88.5 76.0 86.3 88.5 | 82.7 70.0 80.7 83.1",
            ROBERTA: "86.5 67.2 84.6 86.2 | 90.2 76.8 88.3 90.0 | 85.6 70.7 84.2 85.7",
            DEBERTA: "86.5 74.1 85.7 87.1 | 91.2 82.3 90.6 91.1 | 86.9 77.7 86.3 87.3",
        },
    ),
    _table(
        5,
        "linear head on [CLS] against verbalizer with the LM head, P-Tuning v2",
        ("accuracy",),
        (LINEAR, VERBALIZER),
        ("SST-2", "RTE", "BoolQ", "CB"),
        {ROBERTA: "96.3 95.8 | 88.4 86.6 | 84.8 84.6 | 96.4 94.6"},  # of CB, table 1 says 100 for the linear head
    ),
)
"""Tables 1 to 5, in order."""


class Released(NamedTuple):
    """What the authors' README reports for one of their scripts: P-Tuning v2 at its best epoch."""

    scores: dict[str, Score]
    """By task. COPA, WiC and WSC are accuracies; they are in no table of the paper."""
    best_epoch: int
    """From 1, of the epochs that the script asks for."""


RELEASED = {
    "boolq_bert": Released({"BoolQ": (74.3,)}, 58),
    "copa_bert": Released({"COPA": (77.0,)}, 12),
    "rte_bert": Released({"RTE": (80.1,)}, 30),
    "wic_bert": Released({"WiC": (75.1,)}, 56),
    "wsc_bert": Released({"WSC": (68.3,)}, 17),
    "conll04_bert": Released({"CoNLL04": (84.5,)}, 33),
    "ontonotes_bert": Released({"OntoNotes 5.0": (86.4,)}, 24),
    "conll12_bert": Released({"CoNLL12": (85.3,)}, 43),
    "boolq_roberta": Released({"BoolQ": (84.0,)}, 86),
    "copa_roberta": Released({"COPA": (92.0,)}, 78),
    "rte_roberta": Released({"RTE": (86.6,)}, 65),
    "wic_roberta": Released({"WiC": (73.7,)}, 31),
    "wsc_roberta": Released({"WSC": (64.4,)}, 3),
    "conll03_roberta": Released({"CoNLL03": (91.8,)}, 28),
    "conll04_roberta": Released({"CoNLL04": (88.4,)}, 45),
    "ontonotes_roberta": Released({"OntoNotes 5.0": (90.1,)}, 59),
    "conll12_roberta": Released({"CoNLL12": (84.7,)}, 37),
    "conll05_roberta": Released({"CoNLL05 WSJ": (89.4,), "CoNLL05 Brown": (83.9,)}, 13),
    "squad_roberta": Released({"SQuAD 1.1": (88.1, 94.2)}, 24),
    "squad_v2_roberta": Released({"SQuAD 2.0": (81.3, 84.7)}, 9),
}
"""By the name of the script, without `run_` and `.sh`."""


def table(number: int) -> Table:
    """A table by its number, 1 to 5."""
    return TABLES[number - 1]
