"""What the benchmarks make of measurements; the measurements themselves are made elsewhere."""

import json
import re
import subprocess
import sys

import pytest

from jopd.config import parse
from tests.scripts import EXPERIMENTS, load

FOLDER = EXPERIMENTS
CPU = load(FOLDER / "benchmarks" / "cpu.py")
GPU = load(FOLDER / "gpu" / "measure.py")


def test_a_report_compares_what_was_measured_in_one_round():
    """Two rounds on a machine that is half as fast in the second."""
    step = lambda seconds: {"seconds": seconds, "peak_bytes": 2**30}
    decode = lambda rate: {"seconds": 128 / rate, "tokens_per_second": rate, "bytes": 10e9}
    phases = {"seconds": {"score": 1.0, "update": 4.0}, "flops": {"score": 1e11, "update": 2e11}}
    found = {
        "machine, ours": [{"flops": 1e11, "read": 10e9, "copy": 9e9}] * 2,
        "machine, theirs": [{"flops": 2e11}] * 2,
        "step, ours": [step(10.0), step(20.0)],
        "step, DistillationTrainer": [step(20.0), step(44.0)],
        "step, GKDTrainer": [step(30.0), step(60.0)],
        **{f"decode {rows}, ours": [decode(64.0)] * 2 for rows in CPU.BATCHES},
        **{f"decode {rows}, theirs": [decode(32.0)] * 2 for rows in CPU.BATCHES},
        **{f"phases {name}": [phases | {"peak_bytes": 2**31}] * 2 for name in CPU.LENGTHS},
        "default step": [{"seconds": 0.5}] * 2,
        "first step": [{"cold": 20.0, "cached": 8.0}] * 2,
    }
    said = CPU.report(found)
    assert "| TRL, DistillationTrainer | 32.0 | 1.0 | 2.10 × [2.00, 2.20] |" in said
    assert "| TRL, GKDTrainer | 45.0 | 1.0 | 3.00 × [3.00, 3.00] |" in said
    # 10 GB at 10 GB/s are one second of the two that it took.
    assert "| 8 | 64 | 32 | 2.00 × [2.00, 2.00] | 50% |" in said
    assert "| 8 × 256 | score | 1.00 | 100% | 2.0 |" in said
    assert "| 8 × 256 | update | 4.00 | 50% | 2.0 |" in said


@pytest.mark.parametrize("part", GPU.PARTS)
def test_what_a_gpu_is_to_run_is_a_run_that_parses(part, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "1 + 1 ="}\n')
    commands = [*GPU.commands(part, tmp_path)]
    assert commands and len({what for what, *_ in commands}) == len(commands)
    for _, command, _ in commands:
        if not (found := re.search(r"ours\.py (?:decode|phases|step|profile) (\S+) (.*)", command)):
            continue
        model, rest = found.groups()
        flags = [word for word in rest.split() if not re.fullmatch(r"\w+=\d+", word)]
        config = parse(["--student.model", model, "--teacher.model", "self", *flags])[1]
        assert config.student.compute.dtype == "bfloat16"


def test_a_model_is_written_before_what_reads_it_and_only_where_something_does(tmp_path):
    before, measured = GPU.batches(["0.6B decode 128"], tmp_path)
    assert [what for what, *_ in before] == ["Qwen/Qwen3-0.6B made"]
    assert [what for what, *_ in measured] == [
        "Qwen/Qwen3-0.6B decode 128",
        "Qwen/Qwen3-0.6B decode 128, transformers",
    ]
    before, measured = GPU.batches(["vocabulary"], tmp_path)
    assert not before and len(measured) == 3


@pytest.mark.parametrize(
    ("program", "found"),
    [
        ("print(1);print('{\"seconds\":2}')", {"seconds": 2}),
        ("print('all')", {"said": "all"}),
        ("print('no');exit(3)", {"failed": "no"}),
        ("exit(3)", {"failed": "exit 3"}),
        ("__import__('time').sleep(9)", {"failed": "not done after 2 s"}),
    ],
)
def test_a_part_that_fails_is_said_to(program, found, tmp_path):
    said = GPU.measured(f"{sys.executable} -c {program}", 2, tmp_path)
    said.pop("process_seconds", None)
    assert said == found
    assert sys.executable in (tmp_path / "log").read_text()


@pytest.mark.parametrize("script", ["run.sh", "wheels.sh"])
def test_the_scripts_are_bash(script):
    subprocess.run(["bash", "-n", FOLDER / "gpu" / script], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "part", ["decode rows=2 new=4", "phases rows=2 new=32", "step rows=2 new=16 steps=1"]
)
def test_a_part_measures_the_baby(part):
    name, *numbers = part.split()
    command = [FOLDER / "benchmarks" / "ours.py", name, "jopd:baby-student", *numbers]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    seconds = found["seconds"]
    assert all(value > 0 for value in (seconds.values() if name == "phases" else [seconds]))
    assert found["peak_bytes"] > 2**20


@pytest.mark.slow
@pytest.mark.parametrize("form", ["naive", "chunked", "tiled"])
def test_every_form_of_the_vocabulary_stage_is_measured(form):
    numbers = "vocabulary=512 width=16 rows=2 columns=8 chunk=2".split()
    command = [FOLDER / "benchmarks" / "vocabulary.py", form, *numbers]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["seconds"] > 0 and found["flops"] == 2 * 2 * 8 * 16 * 512 * 5
