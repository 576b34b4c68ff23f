"""Reports and sweeps as runs would write them, made by rule: for tests of the pages, and for looking at pages.

    python -m tests.report_cases FOLDER   # draws them all

It refuses to know pytest.
"""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path
from typing import Any

INTENTS = ("cancel_order", "change_address", "damaged_item", "order_status", "product_question", "return_item")
KINDS = ("corporation", "creative-work", "group", "location", "person", "product")
DIGEST = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
PASSAGE = (
    "The Normans (Norman: Nourmands; French: Normands; Latin: Normanni) were the people who in the 10th and 11th "
    "centuries gave their name to Normandy, a region in France. They were descended from Norse raiders and pirates "
    "from Denmark, Iceland and Norway who, under their leader Rollo, agreed to swear fealty to King Charles III of "
    "West Francia. Through generations of assimilation and mixing with the native Frankish and Roman-Gaulish "
    "populations, their descendants would gradually merge with the Carolingian-based cultures of West Francia. "
    "The distinct cultural and ethnic identity of the Normans emerged initially in the first half of the 10th "
    "century, and it continued to evolve over the succeeding centuries."
)


def text_report() -> dict[str, Any]:
    """Text classification: a confusion matrix, calibration, mistakes without marks."""
    drawn = random.Random(1)
    texts = (
        "Hi, the parcel came today but the lid is cracked and one glass is missing. What now?",
        "I moved last week, please send the second half of the order to the new flat.",
        "is the blue one machine washable or not",
        "Never mind, I found it cheaper elsewhere, stop it before it leaves the warehouse!",
    )
    mistakes = [
        _mistake(f"test.jsonl:{7 * i + 3}", [texts[i % 4]], INTENTS[i % 6], INTENTS[(i + 2) % 6], 0.97 - i * 0.04)
        for i in range(8)
    ]
    details = {
        "labels": list(INTENTS),
        "confusion": _confusion(6, 40, drawn),
        "calibration": _calibration(240, drawn),
        "mistakes": mistakes,
    }
    report = _report("text-classification", "accuracy", ("accuracy", "macro_f1", "matthews"), 0.842, drawn)
    report["details"] = {"test": details, "validation": details | {"mistakes": mistakes[:2]}}
    for split in report["data"]["splits"].values():
        split["labels"] = dict.fromkeys(INTENTS, split["rows"] // 6)
    return report


def names_report() -> dict[str, Any]:
    """Named entities: scores by type, mistakes with marks of all three kinds, some of them over each other."""
    drawn = random.Random(2)
    by_type = {kind: _span_scores(drawn) for kind in KINDS}
    text = "Maria Lopez of Acme Ltd flew from Madrid to Oslo to hear the Oslo Symphony play The Planets on Monday"
    marks = [
        _mark(text, "Maria Lopez", "both", "person"),
        _mark(text, "Acme Ltd", "expected", "corporation"),
        _mark(text, "Acme", "found", "person"),
        _mark(text, "Madrid", "both", "location"),
        _mark(text, "the Oslo Symphony", "expected", "group"),
        _mark(text, "The Planets", "found", "product"),
        _mark(text, "The Planets", "expected", "creative-work"),
    ]
    other = "@sam_k lol they closed the Burger Barn on 5th, gutted"
    burger = _mark(other, "Burger Barn", "expected", "group")
    mistakes = [
        _mistake("emerging.test.annotated:10412", [text], "5 spans", "4 spans", 0.94, marks),
        _mistake("emerging.test.annotated:88", [other], "1 span", "", 0.91, [burger]),
    ]
    report = _report("token-classification", "span_f1", ("span_f1", "precision", "recall"), 0.512, drawn)
    calibration = _calibration(900, drawn)
    report["details"] = {"test": {"by_type": by_type, "calibration": calibration, "mistakes": mistakes * 3}}
    for split in report["data"]["splits"].values():
        tags = ["O", *(f"{part}-{kind}" for kind in KINDS for part in "BI")]
        split["labels"] = {tag: int(split["rows"] * (18 if tag == "O" else drawn.random())) for tag in tags}
    report["skipped"] = {"train": {"rows": 12, "first": "wnut17train.conll:2210: found 1 column, wanted 2"}}
    return report


def answers_report() -> dict[str, Any]:
    """Question answering: a question and a long passage each, answers marked, some without an answer."""
    drawn = random.Random(3)
    passage = f"{PASSAGE} {PASSAGE}"
    question = "In what century did the Normans first gain their separate identity?"
    marks = [_mark(passage, "the first half of the 10th", "expected", ""), _mark(passage, "11th", "found", "")]
    wrong = _mistake("dev-v2.0.json: 56ddde6b", [question, passage], "10th century", "11th", 0.88)
    wrong["marks"] = [mark | {"text": 1} for mark in marks]
    other = "Who gave their name to Normandy in the 1000's?"
    silent = _mistake("dev-v2.0.json: 5ad39d53", [other, passage], "", "Rollo", 0.81)
    silent["marks"] = [_mark(passage, "Rollo", "found", "") | {"text": 1}]
    report = _report("question-answering", "f1", ("f1", "exact_match"), 0.674, drawn)
    by_type = {
        "answerable": {"gold": 5928, "exact_match": 0.571, "f1": 0.652},
        "unanswerable": {"gold": 5945, "exact_match": 0.696, "f1": 0.696},
    }
    calibration = _calibration(11873, drawn)
    report["details"] = {"test": {"by_type": by_type, "calibration": calibration, "mistakes": [wrong, silent]}}
    return report


def sweep() -> dict[str, Any]:
    """Lengths by parameterisation over two seeds, depths from both ends, and trials that were pruned or failed."""
    drawn = random.Random(4)
    trials: list[dict[str, Any]] = []
    for length in (4, 8, 16, 32, 64, 128):
        for kind in ("embedding", "mlp"):
            peak = 32 if kind == "embedding" else 16
            score = 0.80 - 0.025 * abs(math.log2(length / peak)) + (0.008 if kind == "mlp" else 0)
            settings = {"prompt.length": length, "prompt.parameterisation": kind, "optimiser.prompt_rate": 0.01}
            trials += [_trial(len(trials) + i, settings, 11 + i, score, drawn) for i in range(2)]
    for end, best in (("top", 0.79), ("bottom", 0.72)):
        for count in (1, 2, 3, 4, 5):
            score = best - 0.04 * (5 - count) ** 1.2 / 3
            layers = {"from": end, "count": count}
            settings = {"prompt.length": 32, "prompt.layers": layers, "optimiser.prompt_rate": 0.01}
            trials.append(_trial(len(trials), settings, 11, score, drawn))
    for _ in range(14):
        rate = round(10 ** drawn.uniform(-3, -1), 5)
        settings = {"prompt.length": 32, "prompt.layers": "all", "optimiser.prompt_rate": rate}
        score = 0.80 - 0.06 * abs(math.log10(rate / 0.012)) ** 1.5
        trials.append(_trial(len(trials), settings, 11, score, drawn, "pruned" if score < 0.77 else "complete"))
    trials.append(_trial(len(trials), {"prompt.length": 32, "optimiser.prompt_rate": 2.0}, 11, None, drawn, "failed"))
    trials[-1]["reason"] = "step 31: found a loss of nan, wanted a finite one"
    report = _report("token-classification", "span_f1", ("span_f1",), 0.8, drawn)
    return {
        "recipe": report["recipe"],
        "metric": "span_f1",
        "created": report["created"],
        "environment": report["environment"],
        "trials": trials,
        "best": {
            "settings": {"prompt.length": 16, "prompt.parameterisation": "mlp", "optimiser.prompt_rate": 0.01},
            "validation": [0.809, 0.806, 0.812],
            "reported": {"split": "test", "scores": [0.781, 0.774, 0.788], "mean": 0.781, "std": 0.007},
        },
    }


def curve(metrics: tuple[str, ...], top: float, epochs: int, drawn: random.Random) -> list[dict[str, Any]]:
    """Losses that fall and metrics that climb to `top`."""
    found = []
    for epoch in range(1, epochs + 1):
        done = 1 - math.exp(-3.5 * epoch / epochs)
        validation = {name: top * done * (1 - 0.04 * i) + drawn.gauss(0, 0.008) for i, name in enumerate(metrics)}
        loss = 1.8 - 1.3 * done + 0.25 * (epoch / epochs) ** 3
        found.append(
            {
                "epoch": epoch,
                "train_loss": 1.9 - 1.6 * done + drawn.gauss(0, 0.015),
                "validation": {"loss": loss, **validation},
                "rate": 1 - epoch / epochs,
                "seconds": 7.5 + drawn.random(),
            }
        )
    return found


def _report(family: str, metric: str, metrics: tuple[str, ...], top: float, drawn: random.Random) -> dict[str, Any]:
    epochs = curve(metrics, top, 20, drawn)
    best = max(epochs, key=lambda epoch: epoch["validation"][metric])
    scores = {name: best["validation"][name] - 0.013 for name in metrics}
    intervals = {name: [value - 0.031, value + 0.028] for name, value in scores.items()}
    splits = {"train": 3394, "validation": 1009, "test": 1287}
    return {
        "schema_version": 1,
        "created": "2026-11-24T09:31:07+00:00",
        "recipe": {
            "family": family,
            "data": {"train": {"path": "train.conll"}, "test": {"path": "test.conll"}, "text": ["text"]},
            "backbone": "minilm",
            "method": "prompt",
            "prompt": {"length": 32, "layers": "all", "parameterisation": "embedding", "init": "text", "dropout": 0.1},
            "optimiser": {"prompt_rate": 0.03, "head_rate": 0.005, "epochs": 20, "batch_rows": 32},
            "selection": {"metric": "auto", "patience": None},
            "max_tokens": 128,
            "seed": 11,
        },
        "environment": {"software": {"python": "3.11.7", "torch": "2.13.0"}, "device": "cpu", "threads": 2},
        "data": {
            "files": {"train.conll": DIGEST, "test.conll": DIGEST[::-1]},
            "splits": {
                name: {"rows": rows, "tokens": rows * 31, "truncated_rows": rows % 3, "labels": {}}
                for name, rows in splits.items()
            },
        },
        "backbone": {"name": "minilm", "architecture": "bert", "num_layers": 6, "width": 384, "fingerprint": DIGEST},
        "trained_parameters": 152461,
        "trained_share": 0.006756,
        "reported_split": "test",
        "selection": {"metric": metric, "split": "validation", "epoch": best["epoch"]},
        "metrics": {"validation": best["validation"], "test": {"loss": 0.61, **scores}},
        "confidence": {"method": "bootstrap over rows, 1000 samples, 95%", "intervals": {"test": intervals}},
        "details": {},
        "curve": epochs,
        "train_seconds": 283.2,
        "train_tokens_per_second": 3002.6,
        "serving_check": {
            "metric": metric,
            "trained": scores[metric],
            "served": scores[metric],
            "rows": 1287,
            "logit_distance": 2.1e-08,
            "logit_tolerance": 0.05,
        },
        "revision": DIGEST,
    }


def _trial(
    number: int,
    settings: dict[str, Any],
    seed: int,
    score: float | None,
    drawn: random.Random,
    state: str = "complete",
) -> dict[str, Any]:
    epochs = curve(("span_f1",), score or 0.1, 12, drawn)[: 12 if state == "complete" else 4]
    found = None if score is None else max(epoch["validation"]["span_f1"] for epoch in epochs)
    trial = {"number": number, "settings": settings, "seed": seed, "state": state, "score": found}
    return trial | {"epochs": len(epochs), "curve": epochs if score is not None else [], "seconds": 61.5}


def _mistake(
    where: str,
    texts: list[str],
    expected: str,
    found: str,
    confidence: float,
    marks: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    mistake = {"where": where, "texts": texts, "expected": expected, "found": found}
    return mistake | {"confidence": confidence, "marks": marks or []}


def _mark(text: str, part: str, kind: str, label: str) -> dict[str, Any]:
    start = text.index(part)
    return {"text": 0, "start": start, "end": start + len(part), "kind": kind, "label": label}


def _span_scores(drawn: random.Random) -> dict[str, float]:
    precision, recall = drawn.uniform(0.2, 0.8), drawn.uniform(0.1, 0.7)
    f1 = 2 * precision * recall / (precision + recall)
    return {"gold": drawn.randint(60, 430), "precision": precision, "recall": recall, "f1": f1}


def _confusion(size: int, rows: int, drawn: random.Random) -> list[list[int]]:
    matrix = [[0] * size for _ in range(size)]
    for i in range(size):
        for _ in range(rows):
            matrix[i][i if drawn.random() < 0.8 else min(size - 1, int(drawn.expovariate(0.5)))] += 1
    return matrix


def _calibration(rows: int, drawn: random.Random) -> dict[str, Any]:
    bins = []
    for i in range(15):
        count = int(rows * (i / 15) ** 4 / 3)
        middle = (i + 0.5) / 15
        accuracy = min(1.0, max(0.0, middle - 0.12 * middle + drawn.gauss(0, 0.04)))
        filled = {"confidence": middle, "accuracy": accuracy} if count else {"confidence": None, "accuracy": None}
        bins.append({"low": i / 15, "high": (i + 1) / 15, "count": count, **filled})
    return {"ece": 0.087, "bins": bins}


if __name__ == "__main__":
    from prefixbank.trainer import report

    for name, case in (("text", text_report), ("names", names_report), ("answers", answers_report)):
        (Path(sys.argv[1]) / f"{name}.html").write_text(report.render(case()), "utf-8")
    (Path(sys.argv[1]) / "sweep.html").write_text(report.render_sweep(sweep()), "utf-8")
