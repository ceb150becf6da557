"""Every method on the same student, teacher, data, tokens and seeds: one table.

The baby student and the baby teacher of the built-in task; for the methods with privileged views it is this teacher that reads the
solution, frozen, so that the methods differ and not the teachers. Thirty-two completions a step for all; `rlsd`, which compares samples of
one prompt, takes eight prompts of four.

    python experiments/grid.py experiments/leaderboard.py
"""

from jopd import losses
from jopd.config import Checkpointing, Config, Evaluation, Optimizer, RolloutConfig
from jopd.data.sources import DataConfig
from jopd.rollout.sampler import Sampling

SEEDS = (0, 1, 2)
SAME = ["--teacher.model", "jopd:baby-teacher"]
CELLS = {
    "sft": ["--method", "sft"],
    "opd": ["--method", "opd"],
    "opd, forward KL": ["--method", "opd", "--method.divergence", "forward_kl"],
    "opd_pg": ["--method", "opd_pg"],
    "opsd": ["--method", "opsd", *SAME],
    "ar_opd": ["--method", "ar_opd", "--method.teacher-update", "frozen", *SAME],
    "edge_opd": ["--method", "edge_opd", *SAME],
    "rlsd": ["--method", "rlsd", "--rollout.samples", "4", "--prompts", "8", *SAME],
    "topd": ["--method", "topd", "--method.window-tokens", "16"],
    "vopd": ["--method", "vopd"],
    "gae_opd": ["--method", "gae_opd"],
    "cr_opd": ["--method", "cr_opd"],
}
COLUMNS = ("accuracy", "kl", "shortcut_rate", "repetition_rate", "length_mean", "tokens", "seconds")


def config() -> Config:
    return Config(
        method=losses.get("opd"),
        data=DataConfig(source="builtin", held_out=400),
        rollout=RolloutConfig(max_prompt_tokens=256, max_new_tokens=128),
        optimizer=Optimizer(learning_rate=1e-3, warmup=0.1),
        evaluation=Evaluation(every=0, batch=200, sampling=Sampling(temperature=0.0)),
        checkpoint=Checkpointing(every=75, keep=1),
        steps=150,
        prompts=32,
        watch=0,
    )
