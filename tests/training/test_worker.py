import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopd.config import parse
from jopd.models.sharding import on_host
from jopd.training import batch, inputs, optimizer, score, setup, update, windows, write
from jopd.training.batch import by_length, in_rollout, rearranged
from jopd.training.laps import Laps
from jopd.training.logs import read
from jopd.training.work import Work
from jopd.training.worker import Stepped, Worker
from tests.training.problem import lenient, mesh_of
from tests.training.several import Processes
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
            stepped = worker.step(step, state)
            state = stepped.state
    chex.assert_tree_all_finite((state.params, stepped.metrics["loss"]))


def test_rows_of_like_lengths_together_give_the_same_step(
    tiny, tmp_path, monkeypatch, quick_compilation
):
    """Group advantages, ids and the order of the rows that are reported do not get lost."""
    make = optimizer.make
    monkeypatch.setattr(optimizer, "make", lambda *settings: lenient(make(*settings)))
    monkeypatch.setattr(batch, "widths", lambda length: (length, -(-length // 2)))
    reward = np.random.default_rng(0).random(32, dtype=np.float32)
    monkeypatch.setattr(inputs, "rewards", lambda *_: reward)
    flags = ("--method", "rlsd", "--teacher.model", "self", "--prompts", "8", "--watch", "1")
    stepped = {}
    for parts in (1, 4):
        command = [
            *arguments(tiny["student"], "self", tmp_path / str(parts)),
            *flags,
            *("--rollout.samples", "4", "--micro-batches", str(parts)),
            *("--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.tensor", "2"),
        ]
        run = setup.prepare(*parse(command))
        with jax.set_mesh(run.mesh):
            worker = Worker(run)
            after = worker.step(1, run.state)
            stepped[parts] = after.state.params, after.measured()[0]
            if parts > 1:
                assert sorted(in_rollout(on_host(after.places))) == [*range(32)]
                assert (in_rollout(on_host(after.places)) != np.arange(32)).any()
    assert stepped[1][1]["gradient_norm"] > 0
    chex.assert_trees_all_close(stepped[4], stepped[1], rtol=1e-4, atol=1e-5)


NOTHING = Work({}, jnp.zeros(()), jnp.zeros(()))
AHEAD = """
import sys
from jopd import train
from jopd.training import laps

laps._one_at_a_time = lambda: False
train.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_host_that_is_ahead_of_its_devices_changes_nothing(tiny, tmp_path):
    """As on an accelerator; here on one CPU device. The phases' seconds add up to the time."""
    lines = {}
    for name, how in (("waits", ["-m", "jopd.train"]), ("ahead", ["-c", AHEAD])):
        run = arguments(tiny["student"], tiny["teacher"], tmp_path / name, steps=8)
        begin = time.monotonic()
        statuses, said = Processes([[*how, *run]], tmp_path / "said", devices=1).wait()
        seconds = time.monotonic() - begin
        assert statuses == [0], said
        lines[name] = read(tmp_path / name).training
        assert all(value >= 0 for line in lines[name] for value in line["seconds"].values())
        assert sum(sum(line.pop("seconds").values()) for line in lines[name]) < seconds
        assert all(line.pop("speed")["tokens_per_second"] > 0 for line in lines[name])
    assert lines["ahead"] == lines["waits"]


def test_rows_that_are_not_finite_are_named_where_they_were_written():
    mask = np.arange(9) < np.array([5, 1, 9, 2, 8, 3, 7, 6])[:, None]
    finite = jnp.arange(8) != 4
    with jax.set_mesh(mesh_of(2)):
        places = by_length(jnp.asarray(mask), 2)
        metrics = {"finite_rows": rearranged(finite, places)}
        found = Stepped(None, metrics, places, Laps(), NOTHING).measured().metrics
    assert not np.array_equal(metrics["finite_rows"], finite)
    np.testing.assert_array_equal(found["finite_rows"], finite)
