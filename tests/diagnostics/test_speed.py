import pytest

from jopd.diagnostics import speed


def line(step: int, compiling: float = 0.0, **of_speed) -> dict:
    seconds = {"rollout": 2.0, "score": 0.5, "update": 1.0, "waiting": 0.5, "compiling": compiling}
    return {"step": step, "loss": 1.0, "seconds": seconds, "speed": of_speed}


# The first step of each of two processes compiles.
TRAINING = [
    line(1, 6.0, tokens_per_second=100.0, model_flops_utilisation=0.1, peak_memory_bytes=5),
    line(2, tokens_per_second=300.0, model_flops_utilisation=0.3, peak_memory_bytes=7),
    line(3, 2.0, tokens_per_second=200.0, model_flops_utilisation=0.2, peak_memory_bytes=6),
    line(4, tokens_per_second=320.0, model_flops_utilisation=0.4, peak_memory_bytes=6),
    line(5, tokens_per_second=310.0, model_flops_utilisation=0.35, peak_memory_bytes=6),
]
EVALUATIONS = [{"step": 0, "kl": 0.5, "seconds": 7.0}, {"step": 5, "kl": 0.3, "seconds": 5.0}]


def test_the_time_of_steps_and_evaluations_adds_up():
    assert speed.spent(TRAINING, EVALUATIONS) == {
        **{"evaluation": 12.0, "rollout": 10.0, "compiling": 8.0, "update": 5.0},
        **{"score": 2.5, "waiting": 2.5},
    }


def test_the_last_line_of_a_run():
    assert speed.sentence(TRAINING, EVALUATIONS[1:]) == (
        "of 33 s in steps and evaluations: rollout 30 %, compiling 24 %, update 15 %, "
        "evaluation 15 %, score 8 %, waiting 8 %; the median step: 4.0 s, 300 tokens/s, "
        "MFU 30.0 %; bound by the rollout"
    )


@pytest.mark.parametrize(
    "most_first, bound",
    [
        (["evaluation", "rollout"], "the evaluations"),
        (["waiting", "update"], "the host, which the devices wait for"),
        (["compiling", "score", "update"], "compiling, and then by the scoring"),
    ],
)
def test_what_it_was_bound_by(most_first, bound):
    assert speed.bound_by(most_first) == bound


def test_what_was_written_before_there_were_meters_is_read():
    old = [{"step": 1, "seconds": {"rollout": 3.0, "update": 1.0}}]
    assert speed.sentence(old, [{"step": 0}]) == (
        "of 4.0 s in steps and evaluations: rollout 75 %, update 25 %; the median step: 4.0 s; "
        "bound by the rollout"
    )
    assert {*speed.facts(old, [])} == {"median_step_seconds", "seconds", "time_share", "bound_by"}


def test_the_reports_items():
    found = speed.facts(TRAINING, EVALUATIONS)
    assert found["tokens_per_second"] == 300 and found["model_flops_utilisation"] == 0.3
    assert found["peak_memory_bytes"] == 7 and found["bound_by"] == "the evaluations"
    assert found["median_step_seconds"] == 4 and found["time_share"]["rollout"] == 0.25
    assert sum(found["time_share"].values()) == pytest.approx(1)
