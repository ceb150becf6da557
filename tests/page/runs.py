"""Runs as their files have them, written by hand: two evaluations of two answers, three steps."""

import json
from pathlib import Path

import yaml

from jopd.diagnostics import report
from tests.diagnostics.test_report import FACTS, VARIABLES

HOSTILE = "</script><img src=x onerror=\"document.title='taken'\"><!--<script>"


def evaluation(step: int, accuracy: float, kl: float, **more) -> dict:
    interval = {"low": accuracy - 0.1, "high": accuracy + 0.1, "count": 2}
    return {
        "step": step,
        "accuracy": {"value": accuracy, **interval},
        "kl": {"value": kl, "low": kl - 0.01, "high": kl + 0.01, "count": 2},
        "kl_by_position": [kl, 2 * kl, None],
        "accuracy_by_length": [
            {"from": 0, "to": 4, "value": accuracy, "low": 0.0, "high": 1.0, "count": 2},
            {"from": 4, "to": None, "count": 0},
        ],
        "length_mean": 2.0,
        "seconds": 1.5,
        **more,
    }


def answer(step: int, id: str, right: bool, kl: list[float], prompt: str = "how many?") -> dict:
    expected = [
        [["seven", 0.75, True], [HOSTILE, 0.25, False]],
        [[" eggs", 0.5, True], [" pens", 0.125, False]],
    ]
    return {
        "step": step,
        "id": id,
        "prompt": prompt,
        "completion": "seven eggs",
        "answer": "7",
        "right": right,
        "tokens": {
            "text": ["seven", " eggs"],
            "length": 2,
            "measures": {"kl": kl},
            "method": {"push": [-kl[0], None]},
            "likeliest": {"student": expected, "teacher": expected},
        },
    }


def write_run(folder: Path, *, seed: int = 0, name: str = "opd_pg", finished: bool = True) -> Path:
    folder.mkdir(parents=True)
    config = {
        "format": 3,
        "preset": "default",
        "method": {"name": name},
        "optimizer": {"learning_rate": 0.001, "schedule": "cosine"},
        "steps": 3,
        "seed": seed,
        "output": str(folder),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    evaluations = [
        evaluation(0, 0.5, 0.3, teacher={"accuracy": {"value": 1.0, "low": 0.9, "high": 1.0}}),
        evaluation(3, 0.75 + seed / 100, 0.1),
    ]
    training = [
        {"step": step, "loss": 1 / step, "seconds": {"rollout": 0.1 * step}} for step in (1, 2, 3)
    ]
    training[1]["diagnostics"] = {"kl": 0.2, "kl_by_position": [0.1, 0.2, None]}
    samples = [
        answer(0, "a", False, [0.5, 0.25]),
        answer(0, "b", True, [0.01, 0.02], prompt=HOSTILE),
        answer(3, "a", True, [0.125, 4.5]),
        answer(3, "b", True, [0.01, 0.02], prompt=HOSTILE),
    ]
    files = {"evaluations": evaluations, "metrics": training, "samples": samples}
    for file, lines in files.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{file}.jsonl").write_text(text)
    if finished:
        collected = report.collected(
            config=config, facts=FACTS, variables=VARIABLES, evaluations=evaluations
        )
        report.write(folder, collected, evaluations)
    return folder
