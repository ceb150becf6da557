"""What `docs/after_training.md` says of a student's folder, done with the baby student's."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

import jopd
from jopd import evaluate, generate
from jopd.rollout.settings import Sampling

PAGE = (Path(__file__).parents[1] / "docs" / "after_training.md").read_text()
STUDENT = "runs/default-opd-seed0/student"


def block(language: str, holding: str) -> str:
    """The block of the page in that language in which something stands."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (found,) = [each for each in blocks if holding in each]
    return found


def arguments(command: str) -> list[str]:
    """What the page has after `command`."""
    text = block("sh", command).replace("\\\n", " ")
    return shlex.split(text[text.index(command) + len(command) :])


def run(code: str) -> None:
    exec(compile(code, "docs/after_training.md", "exec"), {"__name__": "example"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the page's commands are typed."""
    folder = tmp_path_factory.mktemp("after-training")
    model = jopd.load("jopd:baby-student")
    jopd.save(
        folder / STUDENT,
        model.graph,
        model.params,
        model.architecture,
        model.tokenizer,
        stop_tokens=model.stop_tokens,
    )
    return folder


@pytest.fixture(autouse=True)
def there(folder, monkeypatch):
    monkeypatch.chdir(folder)


def test_transformers_writes_what_our_sampler_writes(capsys):
    pytest.importorskip("torch", reason="transformers' models need torch: pip install torch")
    example = block("python", "AutoModelForCausalLM")
    run(example)
    written = capsys.readouterr().out
    (question,) = re.findall(r'question = "(.*)"', example)
    settings = generate.Generate(
        STUDENT, (question,), max_new_tokens=64, sampling=Sampling(temperature=0.0)
    )
    ((answer,),) = generate.run(settings)
    assert written == answer + "\n" and answer.endswith("\nanswer: 10")


def test_config_and_tokenizer_are_what_vllm_reads():
    config = transformers.AutoConfig.from_pretrained(STUDENT)
    assert config.architectures == ["Qwen3ForCausalLM"] and "Qwen3ForCausalLM" in PAGE
    (room,) = re.findall(r"--max-model-len (\d+)", block("sh", "vllm serve"))
    assert int(room) <= config.max_position_embeddings
    tokenizer = transformers.AutoTokenizer.from_pretrained(STUDENT)
    (chat,) = re.findall(r"-d '(.*?)'", block("sh", "vllm serve"), re.DOTALL)
    prompt = tokenizer.apply_chat_template(
        json.loads(chat)["messages"], add_generation_prompt=True, tokenize=False
    )
    assert prompt.startswith("<|user|>Mia has 14 marbles.") and prompt.endswith("<|assistant|>")


def test_the_problems_are_the_held_out_ones():
    run(block("python", "problems.jsonl"))
    rows = [json.loads(line) for line in Path("problems.jsonl").read_text().splitlines()]
    assert len(rows) == 200 and all(row.keys() == {"question", "answer"} for row in rows)
    # The answer by hand.
    assert rows[0]["question"].startswith(
        "Omar starts with 6 eggs. 1: he finds 5 more. 2: he loses"
    )
    assert rows[0]["answer"] == "7"


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="not installed: pip install 'lm-eval[hf]'"
)
def test_lm_eval_gives_the_answers_and_the_accuracy_of_ours():
    run(block("python", "problems.jsonl"))
    Path("counting.yaml").write_text(block("yaml", "task: counting"))
    command = [sys.executable, "-m", "lm_eval", *arguments("lm_eval ")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(Path("hf").absolute())}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (samples,) = Path("results").rglob("samples_counting_*.jsonl")
    theirs = [json.loads(line) for line in samples.read_text().splitlines()]
    evaluate.main(arguments("python -m jopd.evaluate "))
    record, *ours = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    # But for tokens in a near tie, which rounding decides.
    written = {row["doc"]["question"]: row["resps"][0][0] for row in theirs}
    same = sum(row["completion"] == written[row["prompt"]] for row in ours)
    assert len(ours) == len(written) == 200 and same >= 196
    exact_match = sum(row["exact_match"] for row in theirs) / 200
    assert exact_match == pytest.approx(record["record"]["accuracy"]["value"], abs=0.01)
