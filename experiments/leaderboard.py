"""Eleven methods on the same student, problems and seeds, and the estimators of temporal credit.
The tokens that they write differ, as the table says.

    python experiments/grid.py experiments/leaderboard.py --workers 2
    python experiments/grid.py experiments/leaderboard.py --page       the picture, of the page's
                                                                       table

The baby student and the baby teacher of the built-in task. For the methods with privileged views it
is this teacher, frozen, that reads the solution, so that the methods differ and not the teachers;
but for `edge_opd`, whose premise is one model: its teacher is the student as it was.
Twenty-four completions a step for all, at one learning rate; `rlsd`, which compares samples of one
prompt, takes six prompts of four. Whatever a method has learnt, the judge measures it in the same
way: greedy answers to 400 held-out problems, and their KL to the teacher that reads the bare
problem.

The clip of the gradient's norm is what makes sums over rows and means over tokens comparable at one
learning rate.
"""

from jopd import losses
from jopd.config import Checkpointing, Config, Evaluation, Optimizer, RolloutConfig
from jopd.data.sources import DataConfig
from jopd.rollout.settings import Sampling

SEEDS = (0, 1, 2)
SAME = ["--teacher.model", "jopd:baby-teacher"]
CELLS = {
    "sft": ["--method", "sft"],
    "opd": [],
    "opd, forward KL": ["--method.divergence", "forward_kl"],
    "opd_pg": ["--method", "opd_pg"],
    "opd_pg, discounted 0.9": [
        "--method",
        "opd_pg",
        "--method.credit",
        "discounted",
        "--method.discount",
        "0.9",
    ],
    "opd_pg, return-to-go": ["--method", "opd_pg", "--method.credit", "return_to_go"],
    "vopd": ["--method", "vopd"],
    "gae_opd": ["--method", "gae_opd"],
    "cr_opd": ["--method", "cr_opd"],
    "topd": ["--method", "topd", "--method.window-tokens", "16"],
    "opsd": ["--method", "opsd", *SAME],
    "ar_opd": ["--method", "ar_opd", "--method.teacher-update", "frozen", *SAME],
    "edge_opd": ["--method", "edge_opd"],
    "rlsd": ["--method", "rlsd", "--rollout.samples", "4", "--prompts", "6", *SAME],
}
BASELINE = "opd"
JUDGE = [
    *("--reference", "jopd:baby-teacher", "--task", "builtin", "--data.held-out", "400"),
    *("--sampling.temperature", "0", "--max-new-tokens", "128", "--batch", "200"),
]
COLUMNS = {
    "judge/accuracy": "accuracy",
    "judge/kl": "KL to the teacher",
    "judge/shortcut_rate": "shortcuts",
    "judge/repetition_rate": "repeated 4-grams",
    "judge/length_mean": "length",
    "tokens": "tokens written",
    "step_seconds": "seconds a step",
}
DOTS = ("accuracy", "KL to the teacher")


def config() -> Config:
    return Config(
        method=losses.get("opd"),
        data=DataConfig(source="builtin", held_out=200),
        rollout=RolloutConfig(max_prompt_tokens=256, max_new_tokens=128),
        optimizer=Optimizer(learning_rate=5e-4, warmup=0.1),
        evaluation=Evaluation(every=50, batch=200, sampling=Sampling(temperature=0.0)),
        checkpoint=Checkpointing(every=50, keep=1),
        steps=100,
        prompts=24,
        watch=0,
    )
