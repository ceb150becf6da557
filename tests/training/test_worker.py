import chex
import jax
import pytest

from jopd.config import parse
from jopd.training import optimizer, score, setup, update, windows, write
from jopd.training.worker import Worker
from tests.training.problem import lenient
from tests.training.tiny import arguments

PHASES = {
    write: ("rollout", "guided_rollout", "teacher_rollout"),
    score: ("score", "prepare", "measure"),
    windows: ("windows",),
    update: ("update",),
}


@pytest.mark.parametrize(
    "flags",
    [
        ("--method", "opd"),
        ("--method", "topd", "--method.windows", "1", "--method.window-tokens", "2"),
        ("--method", "edge_opd", "--teacher.model", "self"),
    ],
    ids=lambda flags: flags[1],
)
def test_a_phase_is_traced_once_however_many_steps_there_are(
    flags, tiny, tmp_path, monkeypatch, quick_compilation
):
    """Anything that differs from step to step, a Python number or a type, would compile again."""
    chex.clear_trace_counter()
    make = optimizer.make
    monkeypatch.setattr(optimizer, "make", lambda *settings: lenient(make(*settings)))
    for module, names in PHASES.items():
        for name in names:
            traced_once = chex.assert_max_traces(getattr(module, name), n=1)
            monkeypatch.setattr(module, name, traced_once)
    command = arguments(tiny["student"], tiny["teacher"], tmp_path / "run", watch=0)
    run = setup.prepare(*parse([*command, *flags]))
    worker, state = Worker(run), run.state
    with jax.set_mesh(run.mesh):
        for step in (1, 2, 3):
            state, metrics, _ = worker.step(step, state)
    chex.assert_tree_all_finite((state.params, metrics["loss"]))
