import dataclasses
import json
import re

import pytest

from jopd import losses
from jopd.config import Config, Student, save_yaml
from jopd.data import sources
from jopd.data.sources import DataConfig
from jopd.training.evaluate_job import warn_of_trained_on


@pytest.fixture
def run(tmp_path):
    """The settings under which a student was trained, in whose folder it lies."""
    file = tmp_path / "problems.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{i} + 1?"}) + "\n" for i in range(40)))
    student = Student(str(tmp_path / "run" / "student"))
    config = Config(losses.get("sft"), student, data=DataConfig(str(file), held_out=10))
    (tmp_path / "run" / "student").mkdir(parents=True)
    save_yaml(tmp_path / "run" / "config.yaml", "default", config)
    return config


def asked(run, **changes):
    config = dataclasses.replace(run, data=dataclasses.replace(run.data, **changes))
    return config, sources.load(config.data, "held_out")


def test_more_problems_than_were_held_out_are_problems_that_were_trained_on(run):
    said = "was trained on 15 of these 25 problems: its run had data.held_out=10"
    with pytest.warns(UserWarning, match=re.escape(said)):
        warn_of_trained_on(*asked(run, held_out=25))


@pytest.mark.filterwarnings("error")
def test_nothing_is_said_of_what_was_held_out_or_is_not_known(run, tmp_path):
    warn_of_trained_on(*asked(run))
    warn_of_trained_on(*asked(run, held_out=5))
    elsewhere = dataclasses.replace(run, student=Student(str(tmp_path / "student")))
    warn_of_trained_on(*asked(elsewhere, held_out=25))
    (tmp_path / "run" / "config.yaml").write_text("format: 99\n")
    warn_of_trained_on(*asked(run, held_out=25))
