"""AR-OPD on real reasoning: Qwen2.5-Coder-0.5B-Instruct on GSM8K, for an accelerator.

    GSM8K=FOLDER GSM8K_MODEL=model.gguf python experiments/grid.py experiments/gsm8k.py
    python experiments/grid.py experiments/gsm8k.py --seeds 0 --cells partial full "λ 0.6"

FOLDER has GSM8K's train.jsonl and test.jsonl, as its authors publish them. First, whatever cells
are asked for, the teacher's headroom in each view: where a view gives none there is nothing to
train on. Then each cell at three learning rates with seed 0, chosen on 300 problems of the training
file that nobody trains on, and judged on the 1,319 of the test file.

A model teaches itself: an average of its own weights, rate 0.01 over 100 steps of 64 completions of
up to 256 tokens, reads the solution after the question, with words that ask it to use it. In a
system prompt a model of this size hardly notices one. Controls as in `ar_opd.py`.

Deviations from the paper: another model, of half a billion weights, and grade-school problems.
"""

import os
import shutil
from pathlib import Path

from jopd import losses
from jopd.config import (
    Checkpointing,
    Config,
    Evaluation,
    Optimizer,
    RolloutConfig,
    Student,
    Teacher,
)
from jopd.data.rows import Columns
from jopd.data.sources import DataConfig
from jopd.data.views import ViewConfig
from jopd.rollout.settings import Sampling

SEEDS = (0, 1, 2)
RATES = ("2e-6", "5e-6", "1e-5")
HERE, FILES = Path(__file__).parent, Path("runs/gsm8k/given")
MODEL, TRAIN, CHOSEN_ON, TEST = (
    str(FILES / name) for name in ("model.gguf", "train.jsonl", "choice.jsonl", "test.jsonl")
)
WORDS = (
    "Here is a correct solution to it:\n{context}\nUse it, and write the solution in your own "
    "words, step by step. End with #### and the answer."
)
ANOTHER = [
    *("--data.source", f"{HERE / 'gsm8k_another.py'}:problems"),
    *("--data.columns.prompt", "None", "--data.held-out-split", "None"),
]
NO_VIEW = ["--view.context-placement", "system", "--view.context-template", "None"]
CELLS = {
    "sft": ["--method", "sft", *NO_VIEW],
    "partial": ["--method.scale", "0"],
    "λ 0.4": ["--method.scale", "0.4"],
    "λ 0.6": ["--method.scale", "0.6"],
    "λ 0.8": ["--method.scale", "0.8"],
    "full": ["--method.scale", "1"],
    "λ 1.2": ["--method.scale", "1.2"],
    "full, another's solution": ["--method.scale", "1", *ANOTHER],
    "no teacher": ["--method", f"{HERE / 'no_teacher.py'}:NoTeacher", *NO_VIEW],
    "full, sampled tokens": [
        *("--method", "edge_opd", "--method.guided-share", "0", "--method.region", "all"),
    ],
}
BASELINE = "full"
READ = ["--view.context-placement", "user", "--view.context-template", WORDS]
ANSWERED = [*READ, "--sampling.temperature", "0", "--max-new-tokens", "320", "--batch", "256"]
ASKED = [
    *("--data.source", TRAIN, "--data.held-out-split", CHOSEN_ON, "--data.held-out", "300"),
    *("--data.columns.prompt", "question"),
]
HEADROOM = {
    "the problem alone": [*ASKED, *ANSWERED],
    "half of its solution": [*ASKED, *ANSWERED, "--view", "partial"],
    "its solution": [*ASKED, *ANSWERED, "--view", "full"],
    "another problem's solution": [
        *(*ANOTHER[:2], "--data.held-out", "300", *ANSWERED, "--view", "full"),
    ],
}
CHOICE = [*ASKED, *ANSWERED]
CHOOSE = "accuracy"
JUDGE = [
    *("--data.source", TRAIN, "--data.held-out-split", TEST, "--data.held-out", "1319"),
    *("--data.columns.prompt", "question", *ANSWERED),
]
COLUMNS = {
    "judge/accuracy": "accuracy",
    "judge/shortcut_rate": "shortcuts",
    "late/forward_kl": "late KL from the full view",
    "judge/length_mean": "length",
}
CURVES = {
    "accuracy": "accuracy",
    "shortcut_rate": "shortcuts",
    "late/forward_kl": "KL(full view || student), last fifth (nats)",
}


def prepare() -> None:
    """The model and the problems, under runs/: 300 of the training file's are set aside."""
    if FILES.is_dir():
        return
    folder, model = os.environ.get("GSM8K"), os.environ.get("GSM8K_MODEL")
    if not (folder and model):
        raise SystemExit(
            "set GSM8K to a folder with GSM8K's train.jsonl and test.jsonl, and GSM8K_MODEL to a "
            "GGUF file of Qwen2.5-Coder-0.5B-Instruct"
        )
    making = FILES.with_name("given.partial")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    lines = (Path(folder) / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (making / "train.jsonl").write_text("".join(lines[:-300]), encoding="utf-8")
    (making / "choice.jsonl").write_text("".join(lines[-300:]), encoding="utf-8")
    shutil.copy(Path(folder) / "test.jsonl", making)
    (making / "model.gguf").symlink_to(Path(model).resolve())
    making.rename(FILES)


def config() -> Config:
    return Config(
        method=losses.get("ar_opd"),
        student=Student(model=MODEL),
        teacher=Teacher(model="self"),
        data=DataConfig(
            source=TRAIN,
            held_out_split=CHOSEN_ON,
            held_out=100,
            columns=Columns(prompt="question"),
        ),
        view=ViewConfig(context_placement="user", context_template=WORDS),
        rollout=RolloutConfig(max_prompt_tokens=512, max_new_tokens=256),
        optimizer=Optimizer(learning_rate=5e-6, schedule="constant", warmup=0.1),
        evaluation=Evaluation(
            every=25, batch=100, sampling=Sampling(temperature=0.0), samples_shown=0
        ),
        checkpoint=Checkpointing(every=50, keep=1),
        steps=100,
        prompts=64,
        watch=0,
    )
