"""AR-OPD on the built-in task: does anchoring at the half-shown solution beat being shown all of it, and leak less?

The baby student teaches itself (an average of its own weights reads the worked solution), so what there is to gain is what reading adds:
shown a solution it solves 88 % of the problems greedily, without one 52 %. Cells: the baseline `sft` on the reference solutions, `partial`
and `full` (the same code at scale 0 and 1), and the scales between and beyond.

    python experiments/grid.py experiments/ar_opd.py

The column of the KL compares with the partial view of the cell's own teacher, for `sft` with the initial student: only the cells of AR-OPD
compare with each other there.

Deviations from the paper: a model of half a million parameters, two to five steps a problem, a constant learning rate of 1e-3.
"""

from jopd import losses
from jopd.config import Checkpointing, Config, Evaluation, Optimizer, RolloutConfig, Teacher
from jopd.data.sources import DataConfig
from jopd.rollout.sampler import Sampling

SEEDS = (0, 1, 2)
CELLS = {
    "sft": ["--method", "sft"],
    "partial": ["--method.scale", "0"],
    "ar-0.4": ["--method.scale", "0.4"],
    "ar-0.6": ["--method.scale", "0.6"],
    "ar-0.8": ["--method.scale", "0.8"],
    "full": ["--method.scale", "1"],
    "ar-1.2": ["--method.scale", "1.2"],
}
JUDGE = ["--task", "builtin", "--data.held-out", "400", "--max-new-tokens", "128", "--batch", "200"]
COLUMNS = {
    "judge/accuracy": "accuracy",
    "judge/shortcut_rate": "shortcuts",
    "late/forward_kl_full": "late KL from the full view",
}


def config() -> Config:
    return Config(
        method=losses.get("ar_opd"),
        teacher=Teacher(model="self"),
        data=DataConfig(source="builtin", held_out=200),
        rollout=RolloutConfig(max_prompt_tokens=256, max_new_tokens=128),
        optimizer=Optimizer(learning_rate=1e-3, schedule="constant", warmup=0.1),
        evaluation=Evaluation(every=40, batch=200, sampling=Sampling(temperature=1.0)),
        checkpoint=Checkpointing(every=60, keep=1),
        steps=120,
        prompts=32,
    )
