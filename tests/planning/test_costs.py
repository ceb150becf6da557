"""What a step of the default job costs, as the compiler counts it, is what is written down in
`costs.json`: times are too noisy to hold anybody to.

    python -m tests.planning.test_costs      writes it anew; look at what became dearer, and say why
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import jax
import pytest

from jopd.config import parse
from jopd.planning import programs, shapes
from jopd.training import optimizer
from jopd.training.mesh import make_mesh
from tests.training import tiny
from tests.training.problem import lenient

TABLE = Path(__file__).with_name("costs.json")
COUNTING = """
import jax, sys
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **of: "backend_compile" in event and print("compiled", of["fun_name"]))
from jopd.train import main
main(sys.argv[1:])
"""


def counted() -> dict[str, dict[str, float]]:
    """By phase: operations and bytes moved, the body of a loop once; and bytes held meanwhile."""
    config = parse([])[1]
    run = shapes.of(config, make_mesh(config.mesh, jax.devices()[:1]))
    return {
        made.phase: {
            "flops": made.flops,
            "traffic": made.traffic,
            "temporary": made.memory.temporary,
        }
        for made in programs.compiled(run, programs.STEP)
    }


def compilations() -> dict[str, int]:
    """Of a run of six steps and four evaluations on one device: how many programs are made, and how
    many of them are a phase's.
    """
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        student = tiny.save_model(home / "student", seed=0)
        teacher = tiny.save_model(home / "teacher", seed=1)
        run = tiny.arguments(student, teacher, home / "run", rollout__max_new_tokens=40)
        done = subprocess.run(
            [sys.executable, "-c", COUNTING, *run],
            env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
            capture_output=True,
            text=True,
            check=True,
        )
    lines = [line.split() for line in done.stdout.splitlines()]
    made = Counter(words[1] for words in lines if words[:1] == ["compiled"])
    phases = {name: made[f"jit({name})"] for name in ("rollout", "score", "update")}
    return {"all": made.total(), **phases}


def test_a_run_compiles_as_often_as_it_did():
    table = json.loads(TABLE.read_text())
    if table["jax"] != jax.__version__:
        pytest.skip(f"the table is of jax {table['jax']}, this is {jax.__version__}")
    assert compilations() == table["compilations"]


def test_a_step_costs_what_it_did(monkeypatch):
    table = json.loads(TABLE.read_text())
    if table["jax"] != jax.__version__:
        pytest.skip(f"the table is of jax {table['jax']}, this is {jax.__version__}")
    make = optimizer.make
    monkeypatch.setattr(optimizer, "make", lambda *settings: lenient(make(*settings)))
    costs = counted()
    assert costs.keys() == table["phases"].keys()
    for phase, values in table["phases"].items():
        dearer = {
            name: f"{costs[phase][name]:.3g}, was {value:.3g}"
            for name, value in values.items()
            if costs[phase][name] > 1.02 * value
        }
        assert not dearer, f"{phase}: {dearer}"


if __name__ == "__main__":
    table = {"jax": jax.__version__, "compilations": compilations(), "phases": counted()}
    TABLE.write_text(json.dumps(table, indent=2) + "\n")
