import json

import pytest

from jopd.page import records
from tests.page.runs import write_run


def test_a_run_in_columns(tmp_path):
    run = records.read_run(write_run(tmp_path / "run"), "run")
    assert (run["name"], run["method"], run["preset"]) == ("run", "opd_pg", "default")
    assert (run["done"], run["steps"], run["finished"]) == (3, 3, True)
    assert run["settings"]["optimizer.schedule"] == '"cosine"'
    assert run["curves"]["training"]["loss"] == {
        "title": "loss",
        "unit": "",
        "step": [1, 2, 3],
        "value": [1.0, 0.5, pytest.approx(1 / 3)],
    }
    assert run["curves"]["training"]["seconds/rollout"]["value"] == pytest.approx([0.1, 0.2, 0.3])
    accuracy = run["curves"]["evaluation"]["accuracy"]
    assert (accuracy["value"], accuracy["low"]) == ([0.5, 0.75], pytest.approx([0.4, 0.65]))
    assert accuracy["unit"] == "%"
    assert run["teacher"] == {"accuracy": 1.0}
    held_out = run["profiles"]["on held-out problems"]
    assert held_out["kl_by_position"] == {
        "title": "KL to the teacher by position",
        "unit": "nats",
        "bins": ["0-33 %", "33-66 %", "66-100 %"],
        "step": [0, 3],
        "value": [[0.3, 0.6, None], [0.1, 0.2, None]],
    }
    assert held_out["accuracy_by_length"]["bins"] == ["0-3", "4 or more"]
    assert held_out["accuracy_by_length"]["value"] == [[0.5, None], [0.75, None]]
    assert run["profiles"]["in training steps"]["kl_by_position"]["step"] == [2]
    assert run["samples"]["steps"] == [0, 3]
    assert [it["id"] for it in run["samples"]["answers"][1]] == ["a", "b"]
    groups = {group["title"]: dict(group["items"]) for group in run["checklist"]}
    assert groups["Feedback: what the teacher said"]["views"] == "partial, full"
    json.dumps(run, allow_nan=False)


def test_a_run_that_goes_on_has_no_checklist_yet(tmp_path):
    folder = write_run(tmp_path / "run", finished=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # just being written
    run = records.read_run(folder, "run")
    assert (run["finished"], run["checklist"], run["done"]) == (False, [], 3)


def test_before_the_first_evaluation_there_is_little_to_see(tmp_path):
    folder = write_run(tmp_path / "run", finished=False)
    for name in ("evaluations", "metrics", "samples"):
        (folder / f"{name}.jsonl").unlink()
    run = records.read_run(folder, "run")
    assert (run["result"], run["samples"]["steps"], run["teacher"]) == ([], [], {})


def test_many_steps_are_the_means_of_neighbours(monkeypatch):
    monkeypatch.setattr(records, "POINTS", 3)
    lines = [{"step": i, "loss": float(i), "seconds": {"rollout": 1.0}} for i in range(1, 6)]
    curves = records.curves([records.coarse(group) for group in records.thinned(lines)])
    assert curves["loss"]["step"] == [2, 4, 5]
    assert curves["loss"]["value"] == [1.5, 3.5, 5.0]
    assert curves["seconds/rollout"]["value"] == [1.0, 1.0, 1.0]


def test_runs_of_other_lengths_have_points_at_the_same_steps():
    of = lambda steps: [{"step": step} for step in range(1, steps + 1)]
    ends = [[group[-1]["step"] for group in records.thinned(of(n))] for n in (20_000, 19_000)]
    assert ends[1] == ends[0][: len(ends[1])] and len(ends[0]) <= records.POINTS
    assert records.thinned([]) == []


def test_of_many_evaluations_the_first_and_the_last_are_there(monkeypatch):
    monkeypatch.setattr(records, "EVALUATIONS", 3)
    found = records.shown_samples([{"step": step, "id": "a"} for step in range(0, 70, 10)])
    assert (found["steps"], found["of"]) == ([0, 30, 60], 7)


@pytest.mark.parametrize("text", ["{", "[1]", '{"config": {"steps": 3}}'])
def test_a_report_that_is_torn_or_partial_counts_as_none(tmp_path, text):
    folder = write_run(tmp_path / "run")
    (folder / "report.json").write_text(text)
    run = records.read_run(folder, "run")
    assert (run["finished"], run["checklist"]) == (False, [])


def test_a_run_that_became_longer_is_not_finished(tmp_path):
    folder = write_run(tmp_path / "run")
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("steps: 3", "steps: 30"))
    run = records.read_run(folder, "run")
    assert (run["finished"], run["done"], run["steps"], run["checklist"]) == (False, 3, 30, [])


def test_a_file_is_no_folder(tmp_path):
    folder = write_run(tmp_path / "run")
    with pytest.raises(records.NotARun, match="holds no run"):
        records.read_run(folder / "config.yaml", "run/config.yaml")


def test_code_that_a_config_names_is_not_run(tmp_path):
    folder = write_run(tmp_path / "run")
    (tmp_path / "mine.py").write_text("raise SystemExit('was run')")
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("opd_pg", f"{tmp_path}/mine.py:Mine"))
    assert records.read_run(folder, "run")["method"] == f"{tmp_path}/mine.py:Mine"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("config.yaml", None, "holds no run"),
        ("config.yaml", "{", "can't be read"),
        ("config.yaml", "a list", "holds no settings"),
        ("metrics.jsonl", "1\n2\n", "line 1 is not a run's record"),
        ("config.yaml", "method: opd", "holds no settings"),
    ],
)
def test_what_is_no_run_is_said_to_be_none(tmp_path, file, text, message):
    folder = write_run(tmp_path / "run")
    (folder / file).unlink() if text is None else (folder / file).write_text(text)
    with pytest.raises(records.NotARun, match=message):
        records.read_run(folder, "run")
