"""Tiny runs on a v5e-8 that is not here."""

import json

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jopd import losses, plan
from jopd.config import parse
from jopd.models import operations
from jopd.planning import advice, cost, job, machines, programs, shapes
from jopd.planning.programs import Compiled, Memory
from jopd.training import optimizer
from jopd.training.accelerators import TPUS
from jopd.training.mesh import make_mesh
from tests.training.problem import lenient
from tests.training.tiny import save_model

pytest.importorskip("libtpu")

# 32 rows a chip, as smaller caches vanish into the chip's other memory.
SIZES = "--prompts 256 --rollout.max-new-tokens 16 --rollout.max-prompt-tokens 64 --micro-batches 1"
FLAGS = {"opd": "", "topd": "--method.window-tokens 4 --watch 0"}


@pytest.fixture(autouse=True)
def as_users_run_it(monkeypatch):
    """optax lets types mix, which the tests otherwise forbid; the cache afterwards as before."""
    make = optimizer.make
    monkeypatch.setattr(optimizer, "make", lambda *settings: lenient(make(*settings)))
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("plan") / "model", seed=1, width=256)


def planned(model, method: str, mesh: str = "--mesh.data 1 --mesh.fsdp 8") -> dict:
    flags = f"--student.model {model} --teacher.model self {mesh} {SIZES} {FLAGS[method]}"
    return plan.run(["--method", method, *flags.split(), "--topology", "v5e:2x4", "--json"])


@pytest.mark.parametrize("method", ["opd", pytest.param("topd", marks=pytest.mark.slow)])
def test_a_step_fits_donates_its_state_and_gathers_no_weight_for_a_token(method, model, capsys):
    found = planned(model, method)
    assert json.loads(capsys.readouterr().out) == found
    phases = {phase["phase"]: phase for phase in found["phases"]}
    assert found["fits"] and found["devices"] == 8 and found["mesh"]["fsdp"] == 8
    decoding = {"opd": ["rollout"], "topd": ["rollout", "windows"]}[method]
    for phase in decoding:
        in_loop = phases[phase]["in_loop"]
        # The rows' "has anyone not ended" at least.
        assert in_loop and max(it["bytes"] for it in in_loop) < 4096, in_loop
    # All of the new state lies where the old one was.
    state = shapes.bytes_a_device(run_of(model, method).state)
    for phase in phases.keys() & {"update", "watched update"}:
        assert phases[phase]["donated_bytes"] >= state
        assert phases[phase]["output_bytes"] < state / 10


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in losses.names() if name not in FLAGS])
def test_every_method_compiles_and_fits(method, model, capsys):
    teacher = "none" if method == "sft" else "self"
    flags = f"--student.model {model} --teacher.model {teacher} --watch 0 --prompts 256"
    samples = "2" if method == "rlsd" else "1"
    lengths = "--rollout.max-new-tokens 16 --rollout.max-prompt-tokens 64"
    batch = f"--rollout.samples {samples} {lengths}"
    command = ["--method", method, *flags.split(), *batch.split(), "--topology", "v5e:2x4"]
    found = plan.run([*command, "--json"])
    phases = {phase["phase"]: phase for phase in found["phases"]}
    assert found["fits"] and "update" in phases and ("rollout" in phases) == (method != "sft")
    for phase in phases.values():
        assert all(it["bytes"] < 4096 for it in phase.get("in_loop") or ()), phase


@pytest.mark.slow
def test_a_real_model_writes_on_eight_chips_within_their_memory():
    """Qwen3-0.6B, 64 rows of 1,024 + 3,072 tokens: a row of `tpu/plans.md`."""
    flags = (
        "qwen3-0.6b-from-8b --student.model Qwen/Qwen3-0.6B --teacher.model self --prompts 64 "
        "--rollout.samples 1 --rollout.max-prompt-tokens 1024 --rollout.max-new-tokens 3072"
    )
    config = parse(flags.split())[1]
    mesh = make_mesh(config.mesh, machines.devices("v5e:2x4"))
    (found,) = programs.compiled(shapes.of(config, mesh), ("rollout",))
    assert found.memory.peak < 15.75 * 2**30 and found.in_loop is not None
    assert max(it.bytes for it in found.in_loop) < 4096


def run_of(model, method: str) -> shapes.Shapes:
    flags = f"--student.model {model} --teacher.model self --mesh.data 1 --mesh.fsdp 8 {SIZES}"
    config = parse(["--method", method, *flags.split(), *FLAGS[method].split()])[1]
    return shapes.of(config, make_mesh(config.mesh, machines.devices("v5e:2x4")))


def test_what_does_not_fit_is_told_with_what_to_change(model, monkeypatch, capsys):
    """A step that needs 1 GiB a row of a micro-batch on each chip."""
    phases = lambda run, *_: [
        Compiled(
            "update",
            Memory(0, 0, run.config.rows // run.config.micro_batches << 27, 0),
            donated=0,
            in_loop=None,
            flops=None,
            traffic=None,
            seconds=1.0,
        )
    ]
    monkeypatch.setattr(programs, "compiled", phases)
    found = planned(model, "opd", "--mesh.data 1 --mesh.fsdp -1 --chunk-tokens 256")
    assert not found["fits"] and found["change"] == (
        "--student.compute.dtype bfloat16 --micro-batches 4"
    )
    capsys.readouterr()
    job.show(found)
    said = capsys.readouterr().out
    assert f"by 16.25 GiB: it fits with {found['change']}" in said


def test_a_program_that_the_compiler_refuses_does_not_fit(model):
    flags = f"--student.model {model} --teacher.model self --prompts 262144 --watch 0"
    config = parse(["--rollout.max-new-tokens", "1024", *flags.split()])[1]
    run = shapes.of(config, make_mesh(config.mesh, machines.devices("v5e:2x2")))
    (found,) = programs.compiled(run, ("rollout",))
    assert found.memory.peak > 16 * 2**30 and found.flops is None


def test_a_kernel_that_the_planned_machine_has_not_is_refused(model):
    flags = f"--student.model {model} --teacher.model self --student.compute.attention cudnn"
    with pytest.raises(ValueError, match="attention=cudnn needs an NVIDIA GPU, and .* tpu"):
        plan.run([*flags.split(), "--topology", "v5e:2x2"])


def test_what_a_compiler_asked_for_is_read():
    said = "RESOURCE_EXHAUSTED: Ran out of memory: HLO temporaries (30.50G) exceeds HBM (15.75G)"
    assert programs.asked_of_memory(said) == int(30.5 * 2**30)
    said = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "hbm. Used 17.50G of 15.48G hbm. Exceeded hbm capacity by 2.02G."
    )
    assert programs.asked_of_memory(said) == int(17.5 * 2**30)
    assert programs.asked_of_memory("INTERNAL: HLO temporaries (30.50G)") is None


def test_what_is_measured_before_the_first_step_is_planned_too(model):
    flags = f"--student.model {model} --teacher.model self --evaluation.batch 4096 {SIZES}"
    config = parse(["--mesh.data", "1", "--mesh.fsdp", "8", *flags.split()])[1]
    run = shapes.of(config, make_mesh(config.mesh, machines.devices("v5e:2x4")))
    student, teacher, step = programs.compiled(run, (*programs.EVALUATIONS, "rollout"))
    assert [student.phase, teacher.phase] == ["evaluation", "teacher's evaluation"]
    assert min(student.memory.temporary, teacher.memory.temporary) > 4 * step.memory.temporary


def test_changes_keep_data_over_the_slices_and_halve_an_evaluation_that_is_too_large():
    config = parse("--mesh.data 2 --mesh.fsdp 1 --mesh.tensor -1 --evaluation.batch 32".split())[1]
    flags = [it.flags for it in advice.changes(config, devices=16, slices=2, evaluating=True)]
    first = "--mesh.data 2 --mesh.fsdp -1 --mesh.tensor 1"
    # The mesh of the run itself is no change.
    filled = parse(f"{first} --mesh.fsdp 8".split())[1]
    assert "--mesh.tensor 1" not in next(advice.changes(filled, devices=16, slices=2)).flags
    assert flags[:2] == [first, f"{first} --student.compute.dtype bfloat16"]
    assert flags[2] == f"{flags[1]} --evaluation.batch 16"
    assert "--mesh.data 2 --mesh.fsdp -1 --mesh.tensor 8" in flags[-1]


def test_an_averaged_teacher_counts_as_arrays_of_its_own(model):
    """The student's parameters once more."""
    flags = f"--student.model {model} --teacher.model self {SIZES} --mesh.data 1 --mesh.fsdp 8"
    sizes = {}
    for update in ("frozen", "ema"):
        own = ["--method", "opsd", "--method.teacher-update", update, *flags.split()]
        config = parse(own)[1]
        run = shapes.of(config, make_mesh(config.mesh, machines.devices("v5e:2x4")))
        sizes[update] = shapes.bytes_a_device(run.state)
    assert sizes["ema"] - sizes["frozen"] == shapes.bytes_a_device(run.state.params)


def test_the_models_formula_by_hand(model):
    """One layer of width 256, 2 heads and 1 key head of 8, MLP 16; 256 rows, 64 + 16 columns."""
    run = run_of(model, "opd")
    matrices = 256 * 8 * (2 * 2 + 2) + 3 * 256 * 16
    assert operations.layers(run.student) == matrices
    row = 2 * matrices * 80 + 4 * 2 * 8 * (80 * 80 / 2)
    found = cost.of(run, TPUS["v5e"])
    assert found["score"].flops == pytest.approx(256 * row / 8)
    head = 2 * 256 * run.student.vocabulary_size * 16
    # Read, differentiated (twice as much), and read again for that.
    assert found["update"].flops == pytest.approx(256 * (4 * row + 4 * head + 2 * head) / 8)
    assert found["score"].seconds == pytest.approx(found["score"].flops / 197e12)


def test_a_base_under_adapters_has_no_gradient_and_each_view_its_own_reader(model, tmp_path):
    teacher = save_model(tmp_path / "teacher", seed=2, width=128)
    of = lambda *flags: shapes.of(
        config := parse([*f"--student.model {model} {SIZES}".split(), *flags])[1],
        make_mesh(config.mesh, machines.devices("v5e:2x4")),
    )
    costs = lambda run: cost.of(run, TPUS["v5e"])
    row = lambda of: operations.reading(of, 80)
    run = of("--teacher.model", str(teacher), "--method", "g_opd")
    both = row(run.student) + row(run.teacher)
    assert row(run.student) > row(run.teacher)
    assert costs(run)["score"].flops == pytest.approx(256 * both / 8)
    own = ["--teacher.model", "self"]
    less = (
        costs(of(*own))["update"].flops
        - costs(of(*own, "--student.lora.rank", "2"))["update"].flops
    )
    head = 2 * operations.head(run.student) * 16
    assert less == pytest.approx(256 * (row(run.student) + head) / 8)


def test_slices_are_of_a_topology(capsys):
    with pytest.raises(SystemExit):
        plan.main(["--slices", "2"])
    assert "slices=2 are of a --topology" in capsys.readouterr().err


def test_without_a_topology_a_machine_without_accelerator_is_refused(capsys):
    assert jax.devices()[0].platform == "cpu"
    with pytest.raises(SystemExit):
        plan.main([])
    assert "name a TPU slice, such as --topology v5e:2x4" in capsys.readouterr().err
