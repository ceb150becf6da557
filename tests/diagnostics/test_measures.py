import json

import jax.numpy as jnp
import numpy as np
import pytest

from jopd.diagnostics.measures import (
    LABELS,
    Measure,
    bounds,
    duration,
    is_outcome,
    label,
    measures,
    number,
    plain,
    show,
    unit,
)
from jopd.diagnostics.tokens import Diagnostics


def test_the_numbers_of_a_record_are_found_and_nothing_else():
    record = {
        "step": 50,
        "accuracy": {"value": 0.5, "low": 0.4, "high": 0.6, "count": 100},
        "identity": {"name_rate": 0.25, "examples": ["a"]},
        "kl": None,
        "kl_by_position": [1.0, 2.0],
        "teacher": {"accuracy": 1.0},
        "source": "builtin",
    }
    assert measures(record) == {
        "accuracy": (0.5, 0.4, 0.6, 100),
        "identity/name_rate": (0.25, None, None, None),
    }


@pytest.mark.parametrize(
    ("name", "measure", "expected"),
    [
        ("accuracy", Measure(0.412, 0.353, 0.474, 250), "accuracy|%|41.2 [35.3, 47.4]"),
        ("identity/name_rate", Measure(1.0), "identity: name rate|%|100.0"),
        ("kl", Measure(0.41234), "KL to the teacher|nats|0.412"),
        ("teacher_entropy", Measure(0.0), "teacher entropy|nats|0.000"),
        ("log_ratio", Measure(-0.5), "log ratio|nats|-0.500"),
        ("length_mean", Measure(64.25), "length mean|tokens|64.2"),
        ("identity/forward_kl", Measure(0.5), "identity: KL from the teacher|nats|0.500"),
        ("late/kl_partial", Measure(0.5), "late: kl partial|nats|0.500"),
        ("log_ratio_q01", Measure(-4.25), "log ratio q01|nats|-4.250"),
        ("entropy_gap", Measure(0.1), "gap between the entropies|nats|0.100"),
        ("log_ratio_clipped", Measure(0.02), "log ratio clipped|%|2.0"),
        ("learning_rate", Measure(1e-3), "learning rate||0.001"),
        ("stop_gap", Measure(0.011), "gap between the stop probabilities|%|1.1"),
        ("top_k_overlap", Measure(0.5), "top-k overlap|%|50.0"),
        (
            "teacher_mass_on_student_top_k",
            Measure(0.99),
            "teacher's mass on the student's top-k|%|99.0",
        ),
        ("shortcut_rate", Measure(0.25), "shortcuts|%|25.0"),
        (
            "stop_gap",
            Measure(0.0001, -0.0002, 0.0004, 9),
            "gap between the stop probabilities|%|0.0 [0.0, 0.0]",
        ),
        ("reward", Measure(3), "reward||3"),
    ],
)
def test_a_measure_reads_well(name, measure, expected):
    assert f"{label(name)}|{unit(name)}|{show(name, measure)}" == expected


def test_what_a_measure_cannot_leave():
    infinity = float("inf")
    assert bounds("support/top_k_overlap") == bounds("accuracy") == bounds("stop_gap") == (0, 1)
    assert bounds("late/kl_partial") == bounds("entropy_gap") == (0, infinity)
    assert bounds("log_ratio") == bounds("reward") == (-infinity, infinity)


def test_shares_of_tokens_are_no_outcome():
    assert is_outcome("accuracy") and is_outcome("identity/name_rate")
    assert not any(
        is_outcome(name)
        for name in ("top1_agreement", "kl", "overlap_mass", "stop_gap", "clip_share")
    )


def test_every_token_diagnostic_has_a_unit_and_a_name_to_read():
    logits = jnp.zeros((1, 4))
    terms = Diagnostics("teacher", stop_tokens=()).token_terms(
        logits, {"teacher": logits}, jnp.zeros(1, int), {}
    )
    assert all(unit(name) in ("%", "nats") and not is_outcome(name) for name in terms)
    assert {name for name in terms if name not in LABELS} == {
        "student_entropy",
        "teacher_entropy",
        "log_ratio",
    }


def test_numbers_and_durations_are_short():
    found = [number(x) for x in (0, 7, 1234567, 0.0123456, 4.5678, 999.4, 999.6, 1234.5, -0.5)]
    assert found == ["0", "7", "1,234,567", "0.0123", "4.57", "999", "1,000", "1,234", "-0.5"]
    found = [duration(x) for x in (0.004, 0.0996, 3.21, 9.96, 59.4, 59.6, 252, 3599.7, 11112)]
    assert found == [
        "4 ms",
        "0.1 s",
        "3.2 s",
        "10 s",
        "59 s",
        "1 min 00 s",
        "4 min 12 s",
        "1 h 00 min",
        "3 h 05 min",
    ]


def test_plain_is_json():
    data = plain({"a": np.arange(2), "b": np.float32(0.1), "c": (float("inf"), True, None), 3: "x"})
    assert json.loads(json.dumps(data, allow_nan=False)) == {
        "a": [0, 1],
        "b": 0.100000001,
        "c": [None, True, None],
        "3": "x",
    }
