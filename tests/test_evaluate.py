import json

import pytest

from jopd import evaluate
from jopd.data.sources import DataConfig
from jopd.evaluate import Evaluate


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


def test_a_source_that_does_not_exist_is_one_line(capsys):
    with pytest.raises(SystemExit):
        evaluate.main(["--model", "jopd:baby-student", "--task", "builtinn"])
    assert "builtinn" in capsys.readouterr().err
