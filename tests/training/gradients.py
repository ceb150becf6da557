"""The loss and gradient of methods on the models and batch of `tests.training.problem`, on all
devices of all processes: `python -m tests.training.gradients FOLDER METHOD ... [--distributed...]`.
"""

import pickle
import sys
from pathlib import Path

import jax

from jopd import losses
from jopd.models.sharding import on_host
from jopd.training import processes
from tests.training.problem import mesh_of, problem


def method_of(name: str) -> losses.Method:
    settings = {"window_tokens": 3, "windows": 1} if name == "topd" else {}
    return losses.get(name, **settings)


def outcome(name: str, shape: tuple[int, int, int]) -> dict:
    """On the host: the loss, the parameters after a step of gradient descent, and what was chosen
    on the way (gates, windows, samples).
    """
    given = problem(method_of(name), chunk=7, mesh=mesh_of(*shape))
    scored = given.scored()
    with jax.set_mesh(given.mesh):
        state, metrics = given.jitted.update(given.state, given.fixed, scored, watch=False)
    return on_host(
        {
            "loss": metrics["loss"],
            "params": state.params,
            "inputs": dict(scored.inputs),
            "windows": scored.streams["windows"].tokens if scored.streams else (),
        }
    )


if __name__ == "__main__":
    with processes.together(sys.argv[1:]) as (folder, *names):
        for name in names:
            found = outcome(name, (2, 2, 2))
            if processes.first():
                Path(folder, f"{name}.pickle").write_bytes(pickle.dumps(found))
