"""What the README shows works as it stands there."""

import re
from pathlib import Path

import jax

import jopd

README = Path(__file__).parents[1] / "README.md"


def test_the_loop_of_ones_own_learns(monkeypatch):
    (loop,) = re.findall(r"```python\n(import jax.*?)```", README.read_text(), re.DOTALL)
    said = []
    monkeypatch.setattr("builtins.print", lambda number, value: said.append(float(value)))
    # As users have it; optax counts steps in integers.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(loop, str(README), "exec"), {})
    assert len(said) == 10 and sum(said[-3:]) < 0.5 * sum(said[:3])


def test_every_public_name_is_there_when_it_is_asked_for():
    assert all(getattr(jopd, name) is not None for name in jopd.__all__)
    assert set(jopd.__all__) <= set(dir(jopd))
