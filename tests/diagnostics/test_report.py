import json
import sys

import pytest

from jopd.diagnostics import report
from jopd.diagnostics.checklist import CHECKLIST, TITLES
from tests.diagnostics.records import EVALUATIONS

VARIABLES = {
    "state": "the student's own rollouts, of this step",
    "support": "full vocabulary",
    "credit": "immediate",
    "routing": "none",
    "gates": "none",
    "regularisation": "KL to the initial model",
}
FACTS = {
    "run": {
        "preset": "default",
        "method": "opd",
        "seed": 1234,
        "device": "cpu x 2",
        "seconds": {"total": 312.0, "rollout": 85.5},
    },
    "state": {
        "prompts": 64,
        "sampling": {"temperature": 1.0, "top_k": 0},
        "truncation_rate": 0.02,
        "cold_start": None,
    },
    "feedback": {"teacher": "a | b", "views": ["partial", "full"], "tokenizer_match": True},
    "resource": {"tokens_generated": 1234567, "teacher_tokens": 2345678, "seeds": [1234]},
    "speed": {
        "peak": "989 TFLOP/s a device (H100, bfloat16, published)",
        "model_flops_utilisation": 0.413,
        "peak_memory_bytes": 61 * 2**30,
        "median_step_seconds": 3.21,
        "time_share": {"rollout": 0.6, "update": 0.4},
        "bound_by": "the rollout",
    },
}


@pytest.fixture
def written(tmp_path):
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "kl_by_position.png").touch()
    collected = report.collected(
        config={"steps": 40}, facts=FACTS, variables=VARIABLES, evaluations=EVALUATIONS
    )
    report.write(tmp_path, collected, EVALUATIONS)
    return (tmp_path / "report.md").read_text(), json.loads((tmp_path / "report.json").read_text())


def test_every_item_of_every_group_is_there_or_said_to_be_missing(written):
    text, data = written
    for group, keys in CHECKLIST.items():
        assert f"## {TITLES[group]}" in text
        for key in keys:
            value = data[group][key]
            given = (
                key in FACTS.get(group, {}) or key in ("versions", "command") or group == "update"
            )
            assert given or value == report.MISSING
            assert key == "command" or f"| {key.replace('_', ' ')} |" in text
    assert (
        data["update"]["regularisers"] == VARIABLES["regularisation"]
    )  # derived from the six variables
    assert data["update"]["route"] == report.MISSING
    assert data["state"]["cold_start"] is None


def test_it_says_what_was_run_with_what(written):
    text, data = written
    assert text.startswith("# Run report: default, method opd\n")
    assert data["run"]["command"].startswith("python ") and data["run"]["command"] in text
    assert data["run"]["versions"]["jax"] in text
    for expected in (
        "| seed | 1234 |",
        "| seconds | total 5 min 12 s, rollout 1 min 26 s |",
        "| device | cpu x 2 |",
        "| tokens generated | 1,234,567 |",
        "| teacher tokens | 2,345,678 |",
        "| sampling | temperature 1, top k 0 |",
        "| truncation rate | 2.0 % |",
        "| cold start | none |",
        "| views | partial, full |",
        "| tokenizer match | yes |",
        r"| teacher | a \| b |",
        "| peak | 989 TFLOP/s a device (H100, bfloat16, published) |",
        "| model flops utilisation | 41.3 % |",
        "| tokens per second | not recorded |",
        "| peak memory bytes | 61.00 GiB |",
        "| median step seconds | 3.2 s |",
        "| time share | rollout 60.0 %, update 40.0 % |",
        "![KL to the teacher by position](plots/kl_by_position.png)",
    ):
        assert expected in text
    assert "learning_curve" not in text  # there is no such picture in the folder
    for name, value in VARIABLES.items():
        assert f"| {name} | {value} |" in text
    assert data["variables"] == VARIABLES and data["config"] == {"steps": 40}


def test_before_and_after_with_intervals(written):
    text, data = written
    # Wilson of 80 and 150 of 200; the way from 40 % to the teacher's 98 %: 35 of 58 points.
    assert (
        "| accuracy (%) | 40.0 [33.5, 46.9] | 75.0 [68.6, 80.5] | 98.0 [95.0, 99.2] | 200 |" in text
    )
    assert (
        "Accuracy rose from 40.0 to 75.0 % on 200 held-out problems, 60 % of the way to the "
        "teacher's 98.0 %: 70 gained, 0 lost, McNemar's exact test p below 0.0001." in text
    )
    assert "KL to the teacher fell from 0.400 to 0.100 nats on 200 held-out problems: a" in text
    assert (
        "Tests (at 5 %) and intervals (95 %) cover which problems were asked, and compare the same "
        "problems before and after one by one. They leave out how runs with other seeds than 1234 "
        "would differ, and that some of many tests come out by chance." in text
    )
    assert data["results"]["accuracy"]["change"] == {
        "gained": 70,
        "lost": 0,
        "p": pytest.approx(2 / 2**70),
    }
    assert data["results"]["accuracy"]["after"]["value"] == 0.75
    assert data["results"]["accuracy"]["teacher"]["count"] == 200
    assert set(data["results"]["length_mean"]) == {"before", "after", "teacher"}


def test_drawn_answers_and_unknown_pairs_are_said(tmp_path):
    def written(config, evaluations):
        collected = report.collected(
            config=config, facts=FACTS, variables=VARIABLES, evaluations=evaluations
        )
        report.write(tmp_path, collected, evaluations)
        return (tmp_path / "report.md").read_text()

    drawn = {"evaluation": {"sampling": {"temperature": 0.7}}}
    assert (
        "cover which problems were asked and how the one answer to each fell, drawn at temperature "
        "0.7, and compare the same problems" in written(drawn, EVALUATIONS)
    )
    greedy = {"evaluation": {"sampling": {"temperature": 0.0}}}
    old = [{k: v for k, v in line.items() if k != "by_problem"} for line in EVALUATIONS]
    text = written(greedy, old)
    assert "cover which problems were asked. They leave out" in text
    assert "way to" not in text and "one by one" not in text


def test_the_command_can_be_typed_again(monkeypatch):
    monkeypatch.setattr(
        sys, "orig_argv", ["/usr/bin/python3", "-m", "jopd.train", "--data.source", "jsonl:my file"]
    )
    assert report.command() == "python -m jopd.train --data.source 'jsonl:my file'"


@pytest.mark.parametrize(
    ("facts", "variables", "message"),
    [({"sate": {}}, VARIABLES, "sate"), ({}, {"state": "x"}, "the survey's six")],
)
def test_unknown_groups_and_missing_variables_are_named(facts, variables, message):
    with pytest.raises(ValueError, match=message):
        report.collected(config={}, facts=facts, variables=variables, evaluations=[])
