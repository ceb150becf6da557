"""Credit in time and routing, trained: at batches that the first gradient calls enough for
immediate credit, what do returns, a critic and routing do?

    nice python experiments/grid.py experiments/credit_trained.py --workers 2
    nice python experiments/first_gradient.py experiments/credit_trained.py

`credit.py` has bias and variance in a world that can be written out, `first_gradient.py` the share
of signal on the baby models. Here the same estimators train them, in 16 steps of 384 completions
where the leaderboard takes 100 of 24, so that nobody is judged by its noise alone. Ablations that
the survey, which tests nothing, lacks: GAE's discount without its critic; routing by the student's
own odds among the tokens that the teacher likes better, instead of by the teacher's.
"""

from jopd import losses
from jopd.config import Checkpointing, Config, Evaluation, Optimizer, RolloutConfig
from jopd.data.sources import DataConfig
from jopd.rollout.settings import Sampling

SEEDS = (0, 1, 2)
RATES = ("5e-4", "1.5e-3", "4e-3")
CELLS = {
    "immediate": [],
    "return-to-go": ["--method.credit", "return_to_go"],
    "discounted 0.95": ["--method.credit", "discounted", "--method.discount", "0.95"],
    "gae": ["--method", "gae_opd"],
    "gae, KL-split critic": ["--method", "gae_opd", "--method.critic", "kl_split"],
    "cr_opd": ["--method", "cr_opd"],
    "cr_opd, by the student's odds": [
        *("--method", "cr_opd", "--method.teacher-power", "0", "--method.student-power", "1"),
    ],
}
BASELINE = "immediate"
JUDGE = [
    *("--reference", "jopd:baby-teacher", "--task", "builtin", "--data.held-out", "400"),
    *("--sampling.temperature", "0", "--max-new-tokens", "128", "--batch", "200"),
]
CHOICE = [*JUDGE, "--data.seed", "1"]
CHOOSE = "accuracy"
COLUMNS = {
    "judge/accuracy": "accuracy",
    "judge/kl": "KL to the teacher",
    "judge/repetition_rate": "repeated 4-grams",
    "judge/length_mean": "length",
}


def config() -> Config:
    return Config(
        method=losses.get("opd_pg"),
        data=DataConfig(source="builtin", held_out=24),
        rollout=RolloutConfig(max_prompt_tokens=256, max_new_tokens=128),
        optimizer=Optimizer(learning_rate=1.5e-3, warmup=0.1),
        evaluation=Evaluation(
            every=0, batch=24, sampling=Sampling(temperature=0.0), samples_shown=0
        ),
        checkpoint=Checkpointing(every=16, keep=1),
        steps=16,
        prompts=384,
        micro_batches=4,
        watch=0,
    )
