"""Temporal credit on the task: the estimators whose bias and variance `credit.md` has exactly, as learning curves.

    python experiments/grid.py experiments/credit_curves.py

The clip of the gradient's norm is what makes sums over rows and means over tokens comparable at one learning rate.
"""

from jopd import losses
from jopd.config import Checkpointing, Config, Evaluation, Optimizer, RolloutConfig
from jopd.data.sources import DataConfig
from jopd.rollout.sampler import Sampling

SEEDS = (0, 1, 2)
CELLS = {
    "immediate": ["--method", "opd_pg"],
    "immediate, baseline -KL (vopd)": ["--method", "vopd"],
    "discounted 0.9": ["--method", "opd_pg", "--method.credit", "discounted", "--method.discount", "0.9"],
    "return-to-go": ["--method", "opd_pg", "--method.credit", "return_to_go"],
    "GAE": ["--method", "gae_opd"],
    "GAE, critic split at the KL": ["--method", "gae_opd", "--method.critic", "kl_split"],
    "immediate, routed (cr_opd)": ["--method", "cr_opd"],
    "return-to-go, routed": ["--method", "cr_opd", "--method.credit", "return_to_go"],
    "exact (opd)": ["--method", "opd"],
}
COLUMNS = ("accuracy", "kl", "student_entropy", "seconds")


def config() -> Config:
    return Config(
        method=losses.get("opd_pg"),
        data=DataConfig(source="builtin", held_out=200),
        rollout=RolloutConfig(max_prompt_tokens=96, max_new_tokens=128),
        optimizer=Optimizer(learning_rate=3e-4, warmup=0.1),
        evaluation=Evaluation(every=50, batch=200, sampling=Sampling(temperature=0.0)),
        checkpoint=Checkpointing(every=75, keep=1),
        steps=150,
        prompts=32,
    )
