import json
import os
import subprocess
import sys

import pytest
import tyro

from jopd import evaluate
from jopd.data.sources import DataConfig
from jopd.evaluate import Evaluate
from jopd.rollout.settings import Sampling


def test_a_model_is_at_no_distance_from_itself(tmp_path):
    settings = Evaluate(
        "jopd:baby-student",
        "jopd:baby-student",
        DataConfig(held_out=11, max_steps=2),
        batch=8,
        max_new_tokens=48,
        save=tmp_path / "answers.jsonl",
    )
    record = evaluate.run(settings)
    assert record["kl"]["value"] == pytest.approx(0, abs=1e-6)
    # 11 problems in batches of 8: what fills the last batch up is not counted.
    assert record["accuracy"]["count"] == 11
    first, *answers = [
        json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()
    ]
    assert first["record"]["accuracy"]["count"] == len(answers) == 11
    right = sum(answer["completion"].split()[-1:] == [answer["answer"]] for answer in answers)
    assert right / 11 == pytest.approx(record["accuracy"]["value"])


def test_a_model_that_reads_the_solution_gets_more_of_them_right(tmp_path):
    """The baby student uses what it is shown, and what the reference reads it is shown too."""
    records = []
    for reads in ("plain", "full"):
        settings = Evaluate(
            "jopd:baby-student",
            "jopd:baby-student",
            DataConfig(held_out=24, max_steps=6),
            reads=reads,
            sampling=Sampling(temperature=0.0),
            batch=24,
            max_new_tokens=96,
        )
        records.append(evaluate.run(settings))
    plain, full = (record["by_problem"]["accuracy"] for record in records)
    assert sum(full) >= sum(plain) + 4
    assert [record["kl"]["value"] for record in records] == pytest.approx([0, 0], abs=1e-6)


def test_a_view_is_one_of_those_that_show_something(capsys):
    with pytest.raises(SystemExit):
        evaluate.main(["--model", "jopd:baby-student", "--view", "teachers"])
    assert "teachers" in (said := capsys.readouterr().err) and "privileged" in said


def test_a_view_has_its_own_settings_and_no_others(capsys):
    settings = lambda *flags: tyro.cli(Evaluate, args=["--model", "x", *flags])
    half = settings("--reads", "partial", "--view.partial-share", "0.3")
    assert evaluate.as_run(half).view.partial_share == 0.3
    told = settings("--reads", "full", "--view.context-placement", "user")
    assert evaluate.as_run(told).view.context_placement == "user"
    with pytest.raises(SystemExit):
        evaluate.main(["--model", "x", "--view.partial-share", "0.3"])
    assert "view.partial_share=0.3 has no effect with reads=plain" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_answered(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate.main(["--model", "nowhere", "--save", str(tmp_path)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and f"save={tmp_path} can't be written" in error


def test_answers_are_saved_in_any_locale_and_the_reference_is_called_so(tmp_path):
    # A Python without UTF-8 mode in the C locale would write ASCII.
    code = (
        "from jopd.evaluate import main\n"
        "from jopd.data import sources\n"
        "from jopd.data.example import Example\n"
        "sources.load = lambda *_: [Example('a', ({'role': 'user', 'content': 'h\\u00e9, 1?'},))]\n"
        "main(['--model', 'jopd:baby-student', '--reference', 'jopd:baby-student',"
        f" '--max-new-tokens', '4', '--save', {str(tmp_path / 'answers.jsonl')!r}])"
    )
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "KL to the reference" in done.stdout and "teacher" not in done.stdout
    lines = (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[1])["prompt"] == "h\u00e9, 1?"


def test_a_source_that_does_not_exist_is_one_line(capsys):
    with pytest.raises(SystemExit):
        evaluate.main(["--model", "jopd:baby-student", "--task", "builtinn"])
    assert "builtinn" in capsys.readouterr().err
