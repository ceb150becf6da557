"""Fifteen methods on the same student, problems and seeds, and the estimators of temporal credit,
each at its own learning rate. The tokens that they write differ, as the table says.

    nice python experiments/grid.py experiments/leaderboard.py --workers 2
    python experiments/grid.py experiments/leaderboard.py --page

The baby student and the baby teacher of the built-in task. Methods with privileged views are there
twice: with this teacher, frozen, reading the solution, so that the methods differ and not the
teachers; and, as their papers have it, with the student itself reading it. `edge_opd`, whose
premise is one model, is there so only. Twenty-four completions a step for all; `rlsd`, which
compares samples of one prompt, takes six prompts of four. Its control tosses a coin where the
verifier would judge.

The learning rate is the best of three by accuracy on 400 problems that are not the test's, with
seed 0, which is one of the three that are then judged: what was chosen on other problems is not
chosen on the test's, but one of three seeds was looked at. Whatever a method has learnt, the judge
measures it in the same way: greedy answers to 400 held-out problems, and their KL to the teacher
that reads the bare problem.
"""

from pathlib import Path

from jopd import losses
from jopd.config import Checkpointing, Config, Evaluation, Optimizer, RolloutConfig
from jopd.data.sources import DataConfig
from jopd.rollout.settings import Sampling

SEEDS = (0, 1, 2)
RATES = ("2e-4", "5e-4", "1.5e-3")
SAME = ["--teacher.model", "jopd:baby-teacher"]
SELF = ["--teacher.model", "self"]
GROUPS = ["--rollout.samples", "4", "--prompts", "6"]
COIN = f"{Path(__file__).parent / 'coin_toss.py'}"
CELLS = {
    "sft": ["--method", "sft"],
    "opd": [],
    "opd, forward KL": ["--method.divergence", "forward_kl"],
    "opd_pg": ["--method", "opd_pg"],
    "opd_pg, discounted 0.9": [
        *("--method", "opd_pg", "--method.credit", "discounted", "--method.discount", "0.9"),
    ],
    "opd_pg, return-to-go": ["--method", "opd_pg", "--method.credit", "return_to_go"],
    "vopd": ["--method", "vopd"],
    "gae_opd": ["--method", "gae_opd"],
    "cr_opd": ["--method", "cr_opd"],
    "topd": ["--method", "topd", "--method.window-tokens", "16"],
    "g_opd": ["--method", "g_opd"],
    "iw_opd": ["--method", "iw_opd"],
    "entropy_opd": ["--method", "entropy_opd"],
    "opd_plus": ["--method", "opd_plus"],
    "opsd": ["--method", "opsd", *SAME],
    "opsd, self": ["--method", "opsd", *SELF],
    "ar_opd": ["--method", "ar_opd", "--method.teacher-update", "frozen", *SAME],
    "ar_opd, self": ["--method", "ar_opd", *SELF],
    "edge_opd, self": ["--method", "edge_opd", *SELF],
    "rlsd": ["--method", "rlsd", *GROUPS, *SAME],
    "rlsd, self": ["--method", "rlsd", *GROUPS, *SELF],
    "rlsd, coin toss": [
        *("--method", "rlsd", *GROUPS, *SAME),
        *("--data.source", f"{COIN}:problems", "--data.answer-check", f"{COIN}:toss"),
    ],
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
}
# Other problems of the same kind.
CHOICE = [*JUDGE, "--data.seed", "1"]
CHOOSE = "accuracy"
DOTS = ("accuracy", "KL to the teacher")
# The views of AR-OPD (full) and of the other privileged methods.
HEADROOM = {
    f"{view}{whose}": [*CHOICE, "--model", model, "--view", view]
    for whose, model in (("", "jopd:baby-teacher"), (", self", "jopd:baby-student"))
    for view in ("plain", "full", "privileged")
}


def config() -> Config:
    return Config(
        method=losses.get("opd"),
        data=DataConfig(source="builtin", held_out=24),
        rollout=RolloutConfig(max_prompt_tokens=256, max_new_tokens=128),
        optimizer=Optimizer(learning_rate=5e-4, warmup=0.1),
        evaluation=Evaluation(
            every=0, batch=24, sampling=Sampling(temperature=0.0), samples_shown=0
        ),
        checkpoint=Checkpointing(every=100, keep=1),
        steps=100,
        prompts=24,
        watch=0,
    )
