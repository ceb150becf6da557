"""TOPD on the built-in task: OPD, near-future guidance by transport in two spaces, its control, and
the down-weighting ablation.

    nice python experiments/grid.py experiments/topd.py --workers 2
    python experiments/topd_transport.py

One window a row, of 16 tokens, as a solution has about 40. The coefficient 0 is OPD, with windows
that are measured and not learnt from. "embeddings" compares tokens by the student's static
embeddings, "states" by the teacher's final hidden states: the paper leaves open which. Each cell's
learning rate is the best of three by accuracy on 400 other problems, with seed 0.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jopd import losses
from jopd.config import Checkpointing, Config, Evaluation, Optimizer, RolloutConfig
from jopd.data.sources import DataConfig
from jopd.rollout.settings import Sampling

SEEDS = (0, 1, 2)
RATES = ("2e-4", "5e-4", "1.5e-3")
STATES = ["--method.space", "hidden_states"]


def times(coefficient: str) -> list[str]:
    return ["--method.trajectory-coefficient", coefficient]


CELLS = {
    "opd": times("0"),
    "embeddings, 0.1": [],
    "states, 0.1": STATES,
    "the teacher's window (control), 0.1": ["--method.target", "teacher_window"],
    "embeddings, 1": times("1"),
    "states, 1": [*STATES, *times("1")],
    "the teacher's window (control), 1": ["--method.target", "teacher_window", *times("1")],
    "low transport capped": ["--method.down-weight", "low_transport", *times("0")],
    "high transport capped": ["--method.down-weight", "high_transport", *times("0")],
    "embeddings, 0.3": times("0.3"),
    "states, 0.3": [*STATES, *times("0.3")],
    "embeddings, 0.05": times("0.05"),
    "states, 0.05": [*STATES, *times("0.05")],
    "states, 0.1, two windows": [*STATES, "--method.windows", "2"],
    "states, 0.1, 32 tokens": [*STATES, "--method.window-tokens", "32"],
}
BASELINE = "opd"
SPACES = ("embeddings", "states")
CONTROL = "the teacher's window (control)"
JUDGE = [
    *("--reference", "jopd:baby-teacher", "--task", "builtin", "--data.held-out", "400"),
    *("--sampling.temperature", "0", "--max-new-tokens", "128", "--batch", "200"),
]
CHOICE = [*JUDGE, "--data.seed", "1"]
CHOOSE = "accuracy"
COLUMNS = {
    "judge/accuracy": "accuracy",
    "judge/kl": "KL to the teacher",
    "judge/support/forward_kl": "forward KL",
    "judge/repetition_rate": "repeated 4-grams",
    "last/false_alarms": "false alarms",
    "first/transport_high": "transport at high loss, first steps",
    "last/transport_high": "last steps",
    "last/transport_low": "at low loss, last steps",
}
DOTS = ("accuracy", "KL to the teacher")


def transport(found: Mapping[str, Sequence[Any]]) -> list[list[str]]:
    """Costs by where the loss is high, of `topd_transport.py`."""
    del found
    rows = [["transport cost, median", "high loss", "random", "low loss", "false alarms (%)"]]
    for space in SPACES:
        if entry := _measured(space, "probe"):
            medians = [f"{entry[f'median/{where}']:.3f}" for where in ("high", "random", "low")]
            rows.append([f"by {space}", *medians, _shown(entry, "false_alarms", 100, 0)])
    return rows


def targets(found: Mapping[str, Sequence[Any]]) -> list[list[str]]:
    """What the windows' loss teaches, and where it points."""
    del found
    rows = [
        [
            "targets",
            "the teacher's log-probability of them (nats)",
            "of its own best token there",
            "cosine of their gradient with the divergence's",
            "with the control's",
        ]
    ]
    for name in (*SPACES, CONTROL, "states, two windows", "states, 32 tokens"):
        of, angle = _measured(name, "targets"), _measured(name, "gradient")
        if of and angle:
            logp = [_shown(of, key, 1, 2) for key in ("targets_logp", "best_logp")]
            cosines = [_shown(angle, key, 1, 2) for key in ("divergence", "control")]
            rows.append([name, *logp, cosines[0], "" if name == CONTROL else cosines[1]])
    return rows


def local_correction(found: Mapping[str, Sequence[Any]]) -> list[list[str]]:
    """Windows of the same prefixes after five updates on them."""
    del found
    head = ["mean transport cost at high loss, five updates by"]
    for space in SPACES:
        head += [f"by {space}: before", "after", "change"]
    rows = [head]
    for name in ("opd", *SPACES, CONTROL):
        entries = [_measured(name, f"corrected, by {space}") for space in SPACES]
        if all(entries):
            keys = ("before", "after", "change")
            rows.append([name, *(_shown(it, key, 1, 3) for it in entries if it for key in keys)])
    return rows


def _measured(name: str, what: str) -> dict[str, float] | None:
    # The grid's neighbours, which the trainer does not need.
    import ledger
    import topd_transport

    entries = ledger.entries(topd_transport.LEDGER).values()
    known = [it for it in entries if it.settings == topd_transport.digest()]
    return next((it.measured for it in known if (it.cell, it.rate) == (name, what)), None)


def _shown(entry: Mapping[str, float], name: str, of: float, digits: int) -> str:
    if name not in entry:
        return "not told from none"
    value, low, high = (of * entry[key] for key in (name, f"{name}/low", f"{name}/high"))
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


TABLES = (transport, targets, local_correction)


def config() -> Config:
    return Config(
        method=losses.get("topd", windows=1, window_tokens=16),
        data=DataConfig(source="builtin", held_out=64),
        rollout=RolloutConfig(max_prompt_tokens=96, max_new_tokens=128),
        optimizer=Optimizer(learning_rate=5e-4, warmup=0.1),
        evaluation=Evaluation(
            every=0, batch=64, sampling=Sampling(temperature=0.0), samples_shown=0
        ),
        checkpoint=Checkpointing(every=60, keep=1),
        steps=60,
        prompts=16,
        watch=0,
    )
