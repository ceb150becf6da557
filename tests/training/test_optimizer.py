import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jopd.config import Optimizer
from jopd.training import optimizer
from tests.training.problem import lenient


@pytest.mark.parametrize(
    "name, after",
    [
        ("constant", [1.0] * 9),
        ("linear", [1 - k / 8 for k in range(9)]),
        ("cosine", [(1 + math.cos(math.pi * k / 8)) / 2 for k in range(9)]),
    ],
)
def test_the_rate_rises_from_its_first_fraction_and_then_follows_the_schedule(name, after):
    # Two of ten updates of warm-up: 1/3 and 2/3, then the schedule over the eight that are left,
    # whose end nobody uses.
    rate = optimizer.schedule(Optimizer(learning_rate=1.0, schedule=name, warmup=0.2), updates=10)
    np.testing.assert_allclose([rate(k) for k in range(11)], [1 / 3, 2 / 3, *after], atol=1e-6)
    rate = optimizer.schedule(Optimizer(learning_rate=2.0, schedule=name, warmup=0.0), updates=8)
    np.testing.assert_allclose([rate(k) for k in range(9)], 2 * np.array(after), atol=1e-6)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_the_rates_of_a_run_are_its_schedule_at_each_update(name):
    settings = Optimizer(learning_rate=3e-4, schedule=name, warmup=0.3)
    found, rate = optimizer.rates(settings, updates=10), optimizer.schedule(settings, updates=10)
    np.testing.assert_allclose(found, [rate(k) for k in range(10)], rtol=1e-6)
    assert found.shape == (10,) and found[0] == pytest.approx(3e-4 / 4)  # three of warm-up


def test_a_short_runs_warm_up_is_one_update():
    rate = optimizer.schedule(
        Optimizer(learning_rate=1.0, schedule="constant", warmup=0.01), updates=3
    )
    np.testing.assert_allclose([rate(k) for k in range(3)], [0.5, 1, 1])
    assert optimizer.schedule(Optimizer(learning_rate=1.0, warmup=0.5), updates=1)(0) == 0.5


@pytest.mark.parametrize("clip_norm, weight_decay", [(0.0, 0.0), (1.0, 0.0), (1.0, 0.1)])
def test_it_is_adamw_behind_a_clip_and_the_modules_go_their_own_way(clip_norm, weight_decay):
    settings = Optimizer(
        0.1, "linear", 0.0, weight_decay, b1=0.8, b2=0.9, epsilon=1e-3, clip_norm=clip_norm
    )
    gradients = [
        np.array([3.0, -4.0]),
        np.array([0.1, 0.2]),
        np.array([-30.0, 40.0]),
    ]  # norms 5, .22, 50
    transform = optimizer.make(settings, updates=4, modules_learning_rate=0.5)
    params = {"student": {"w": jnp.array([1.0, -2.0])}, "modules": {"w": jnp.array([4.0])}}
    state = transform.init(params)
    w, m, v = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    for step, gradient in enumerate(gradients):
        # The modules' gradient is huge and does not shrink the student's; Adam steps by the whole
        # rate while it is constant.
        given = {
            "student": {"w": jnp.asarray(gradient, jnp.float32)},
            "modules": {"w": jnp.array([1e6])},
        }
        updates, state = lenient(transform).update(given, state, params)
        params = optax.apply_updates(params, updates)
        g = gradient / max(1, np.linalg.norm(gradient) / clip_norm) if clip_norm else gradient
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
        direction = (m / (1 - 0.8 ** (step + 1))) / (np.sqrt(v / (1 - 0.9 ** (step + 1))) + 1e-3)
        w = w - 0.1 * (1 - step / 4) * (direction + weight_decay * w)
        np.testing.assert_allclose(params["student"]["w"], w, rtol=1e-5)
        np.testing.assert_allclose(params["modules"]["w"], 4 - 0.5 * (step + 1), rtol=1e-5)
