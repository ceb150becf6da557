"""`python -m jopd.train` from its first line to its last file, on random models: what a user gets,
and what stops a run.
"""

import contextlib
import dataclasses
import errno
import io
import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from flax.traverse_util import flatten_dict
from rich.console import Console

from jopd import train
from jopd.config import differences, load_yaml, parse, to_dict
from jopd.models.load import load
from jopd.training import console, loop, optimizer, setup, worker
from jopd.training.checkpoint import Checkpoints
from jopd.training.folder import home_of
from jopd.training.logs import METRICS, read
from tests.training.problem import lenient
from tests.training.tiny import arguments, save_model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        role: save_model(folder / role, seed=seed, width=8 + 8 * seed)
        for seed, role in ((1, "student"), (2, "teacher"))
    }


@pytest.fixture(scope="module", autouse=True)
def lenient_optax_and_quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        make = optimizer.make
        patch.setattr(optimizer, "make", lambda *settings: lenient(make(*settings)))
        yield
    jax.config.update("jax_disable_most_optimizations", False)


def command(models, output, **changes):
    return arguments(models["student"], models["teacher"], output, **changes)


@pytest.fixture(scope="module")
def finished(models, tmp_path_factory):
    """The folder of a finished run; what it printed lies beside it."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console, "CONSOLE", Console(file=io.StringIO(), width=200))
        train.main(command(models, folder))
        (folder.parent / "printed").write_text(console.CONSOLE.file.getvalue())
    return folder


def test_a_run_says_what_it_does_before_it_does_it(finished):
    said = (finished.parent / "printed").read_text()
    order = [
        *(
            "preparing default with method opd",
            "student",
            "teacher",
            "held out",
            "mesh",
            str(finished),
        ),
        *(
            "(compiles first)",
            "The student reads",
            "The student writes",
            "compiling the first step",
        ),
        *("step 1/6", "step 6/6", "held-out problems, before and after", "everything is in"),
    ]
    places = [said.find(words) for words in order]
    assert -1 not in places and places == sorted(places), list(zip(order, places, strict=True))


def test_a_run_leaves_everything_in_its_folder(models, finished):
    records = read(finished)
    assert [line["step"] for line in records.training] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in records.evaluations] == [0, 2, 4, 6]
    assert [line["step"] for line in records.samples] == [0, 0, 2, 2, 4, 4, 6, 6]
    for line in records.training:
        assert {
            "loss",
            "kl",
            "gradient_norm",
            "tokens",
            "length_mean",
            "truncation_rate",
            "student_entropy",
        } <= set(line)
        assert {*line["seconds"]} == {"rollout", "score", "update", "waiting", "compiling"}
    first, last = records.evaluations[0], records.evaluations[-1]
    assert (
        set(first["accuracy"]) == {"value", "low", "high", "count"}
        and first["accuracy"]["count"] == 8
    )
    assert "teacher" in first and "teacher" not in last
    assert last["kl"]["value"] < first["kl"]["value"]  # six steps move a model of this size
    assert len(last["kl_by_position"]) == 10

    assert load_yaml(finished / "config.yaml") == parse(command(models, finished))
    plots = {path.stem for path in (finished / "plots").iterdir()}
    assert plots == {
        "accuracy_by_length",
        "kl_by_position",
        "learning_curve",
        "overlap_by_position",
    }
    assert list(finished.glob("events.out.tfevents*"))
    assert "# A student of on-policy distillation" in (finished / "student/README.md").read_text()
    report = json.loads((finished / "report.json").read_text())
    assert isinstance(report, dict) and (finished / "report.md").read_text().strip()
    assert {int(path.name) for path in (finished / "checkpoints").iterdir()} >= {4, 6}


def restored(run: list[str], folder):
    """The last step and state that a run has saved."""
    ready = setup.prepare(*parse(run))
    checkpoints = Checkpoints(folder / "checkpoints", keep=2, facts=ready.facts)
    with contextlib.closing(checkpoints):
        return checkpoints.restore(ready.state)


def test_the_student_that_is_saved_is_the_one_that_was_trained(models, finished):
    step, state = restored(command(models, finished), finished)
    assert step == state.step == 6
    saved, initial = load(finished / "student"), load(models["student"])
    chex.assert_trees_all_equal(jax.device_get(saved.params), jax.device_get(state.params))
    assert (
        saved.stop_tokens == initial.stop_tokens
        and saved.tokenizer.get_vocab() == initial.tokenizer.get_vocab()
    )
    moved = [
        np.abs(a - flatten_dict(jax.device_get(initial.params))[key]).max()
        for key, a in flatten_dict(jax.device_get(saved.params)).items()
    ]
    assert min(moved) > 0  # every parameter was trained


def test_the_same_command_again_prints_the_result_and_touches_nothing(models, finished, capsys):
    times = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    train.main(command(models, finished))
    printed = capsys.readouterr().out
    assert "is finished; its result" in printed and "accuracy" in printed
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == times


def refused(arguments, capsys) -> str:
    """The one line that a refused command ends with."""
    with pytest.raises(SystemExit) as stop:
        train.main(arguments)
    error = capsys.readouterr().err if isinstance(stop.value.code, int) else f"{stop.value.code}\n"
    assert stop.value.code != 0 and error.startswith("error: ") and error.count("\n") == 1, error
    return error


def test_a_folder_of_another_run_is_refused_naming_what_differs(models, finished, capsys):
    error = refused(command(models, finished, seed=9, prompts=16, chunk_tokens=2), capsys)
    assert (
        "holds a run with other settings (prompts: 8 -> 16; seed: 0 -> 9)" in error
        and f"--output {finished}-2" in error
    )


def without_clocks(lines) -> list[dict]:
    return [{k: v for k, v in line.items() if k not in ("seconds", "speed")} for line in lines]


def test_config_runs_a_saved_run_again(models, finished, tmp_path):
    """Elsewhere it gives the same numbers."""
    train.main(["--config", str(finished / "config.yaml"), "--output", str(tmp_path / "again")])
    again, first = read(tmp_path / "again"), read(finished)
    assert without_clocks(again.training) == without_clocks(first.training)
    assert without_clocks(again.evaluations) == without_clocks(first.evaluations)
    again, first = (
        yaml.safe_load((folder / "config.yaml").read_text())
        for folder in (tmp_path / "again", finished)
    )
    assert [line.split(":")[0] for line in differences(again, first)] == ["output"]


def test_a_finished_run_may_be_made_longer(models, finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    before = read(tmp_path / "run").training
    longer = command(models, tmp_path / "run", steps=8, chunk_tokens=2)
    train.main(longer)
    said = capsys.readouterr().out
    assert "resuming after step 6 of 8" in said and "the run becomes longer" in said
    lines = read(tmp_path / "run").training
    assert [line["step"] for line in lines] == list(range(1, 9)) and lines[:6] == before
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["config"]["steps"] == 8 and report["run"]["lengthened"][0]["from"] == 6
    step, state = restored(longer, tmp_path / "run")
    assert step == state.step == 8
    saved = load(tmp_path / "run" / "student")
    chex.assert_trees_all_equal(jax.device_get(saved.params), jax.device_get(state.params))
    train.main(longer)
    assert "is finished; its result" in capsys.readouterr().out


MINE = """
import dataclasses
from jopd.losses.opd import OPD

@dataclasses.dataclass(frozen=True)
class Mine(OPD):
    name = "mine"
    source = "ours"

def rows(split):
    return [{"prompt": f"what is {n} plus {n}?", "answer": 2 * n} for n in range(1, 17)]

def score(completion, answer):
    return answer in completion
"""


def test_parts_of_ones_own_train_and_go_on_until_their_file_changes(models, tmp_path, capsys):
    mine = tmp_path / "mine.py"
    mine.write_text(MINE, encoding="utf-8")
    flags = [
        *("--method", f"{mine}:Mine"),
        *("--data.source", f"{mine}:rows", "--data.answer-check", f"{mine}:score"),
    ]
    run = [*command(models, tmp_path / "run", steps=2), *flags]
    train.main(run)
    assert "accuracy" in capsys.readouterr().out
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))
    assert saved["method"]["name"] == f"{mine}:Mine" and list(saved["code"]) == [str(mine)]
    train.main([*run, "--steps", "3"])
    assert "resuming after step 2 of 3" in capsys.readouterr().out
    mine.write_text(MINE + "# changed\n", encoding="utf-8")
    error = refused([*run, "--steps", "4"], capsys)
    assert f"{mine} has changed" in error and "--output" in error


def test_a_run_that_cannot_go_on_says_where_and_keeps_its_last_good_checkpoint(
    models, finished, tmp_path, capsys, monkeypatch
):
    """An all-masked batch, then a loss that is not finite, then another model; put right, the run
    ends as if nothing had been.
    """
    folder = tmp_path / "run"
    run = command(models, folder)
    kept = lambda: {int(path.name) for path in (folder / "checkpoints").iterdir()}

    write = worker.Worker.write

    def write_nothing(self, step, *rest):
        written = write(self, step, *rest)
        nothing = written.batch._replace(mask=jnp.zeros_like(written.batch.mask))
        return written._replace(batch=nothing) if step == 3 else written

    monkeypatch.setattr(worker.Worker, "write", write_nothing)
    error = refused(run, capsys)
    assert (
        "step 3: no token of the batch is inside the mask" in error
        and str(folder / "checkpoints") in error
    )
    assert kept() == {2}
    monkeypatch.undo()

    def poisoned(program, shardings):
        functions = jitted(program, shardings)

        def score(state, fixed, batch, views):
            hidden = functions.score(state, fixed, batch, views)
            bad = jnp.arange(8)[:, None, None] == 5
            return {
                view: jnp.where(bad & (state.step == 3), jnp.nan, values)
                for view, values in hidden.items()
            }

        return functions._replace(score=score)

    jitted = worker.jitted
    monkeypatch.setattr(worker, "jitted", poisoned)
    error = refused(run, capsys)
    assert (
        "step 4: loss nan" in error
        and "not finite in rows [5]" in error
        and "--optimizer.learning-rate" in error
    )
    assert kept() == {2}
    assert [line["step"] for line in read(folder).training] == [1, 2, 3]
    monkeypatch.undo()

    aside = tmp_path / "aside"
    models["student"].rename(aside)
    save_model(models["student"], seed=9, width=16)
    error = refused(run, capsys)
    assert (
        "cannot resume from step 2: student_fingerprint was" in error
        and "choose another --output" in error
    )
    shutil.rmtree(models["student"])
    aside.rename(models["student"])

    train.main(run)
    assert "resuming after step 2 of 6" in capsys.readouterr().out
    for lines, wanted in zip(read(folder), read(finished), strict=True):
        assert without_clocks(lines) == without_clocks(wanted)


@pytest.mark.parametrize(
    "what, said",
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "error: the disk is full: free .* Nothing was saved yet; the same",
        ),
        (KeyboardInterrupt(), "stopped. Nothing was saved yet; the same command goes on"),
    ],
)
def test_what_comes_from_outside_is_said_in_a_line(what, said, models, tmp_path, monkeypatch):
    def comes(run):
        raise what

    monkeypatch.setattr(loop, "train", comes)
    with pytest.raises(SystemExit, match=said):
        train.main(command(models, tmp_path / "run"))


@pytest.mark.parametrize(
    "method, flags",
    [
        ("sft", []),
        ("opd_pg", ["--method.updates", "2", "--method.ratio-clip", "0.2"]),
        ("opsd", ["--teacher.model", "self", "--student.lora.rank", "2"]),
        (
            "opd",
            [
                "--method.on-policy-share",
                "0.5",
                "--rollout.samples",
                "2",
                "--micro-batches",
                "2",
                "--mesh.fsdp",
                "2",
                "--mesh.tensor",
                "2",
            ],
        ),
    ],
)
@pytest.mark.slow
def test_every_way_of_training_runs(method, flags, models, tmp_path):
    run = command(
        models,
        tmp_path / "run",
        steps=2,
        data__limit=16,
        rollout__max_new_tokens=200,
        evaluation__every=0,
    )
    train.main(["--method", method, *run, *flags])
    records = read(tmp_path / "run")
    assert len(records.training) == 2 and all(
        np.isfinite(line["loss"]) for line in records.training
    )
    updates = 2 if method == "opd_pg" else 1
    name, config = parse(["--method", method, *run, *flags])
    checkpoints = Checkpoints(
        tmp_path / "run" / "checkpoints",
        keep=1,
        facts=(prepared := setup.prepare(name, config)).facts,
    )
    assert checkpoints.restore(prepared.state)[1].step == 2 * updates
    checkpoints.close()
    assert load(tmp_path / "run" / "student").architecture == load(models["student"]).architecture


def test_adapters_are_written_and_another_run_begins_with_them(models, tmp_path):
    few = {"steps": 2, "evaluation__every": 0, "data__limit": 16}
    lora = ["--student.lora.rank", "2", "--student.lora.targets", "q_proj", "up_proj"]
    first, second = tmp_path / "first", tmp_path / "second"
    (first / ".adapter-of-a-kill").mkdir(parents=True)
    train.main([*command(models, first, **few), *lora])
    assert {path.name for path in (first / "adapter").iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors", "README.md")
    }
    assert not (first / ".adapter-of-a-kill").exists()
    base = flatten_dict(load(models["student"]).params)
    student, adapter = (load(first / name) for name in ("student", "adapter"))
    assert adapter.origin.base == str(models["student"])
    moved = {key for key, leaf in flatten_dict(student.params).items() if (leaf != base[key]).any()}
    assert {key[-2] for key in moved} == {"query", "up"}
    chex.assert_trees_all_close(adapter.params, student.params, atol=1e-6)

    run = arguments(first / "adapter", "self", second, **few)
    train.main(["--method", "opsd", *run, "--student.lora.rank", "3"])
    both = load(second / "adapter")
    assert both.origin.base == str(models["student"])  # both adapters in one
    chex.assert_trees_all_close(both.params, load(second / "student").params, atol=1e-6)
    assert "rank 5" in (second / "adapter" / "README.md").read_text()


def test_metrics_are_the_steps_own(finished):
    """Numbers of the log that can be told from the samples' side: every row of 8 tokens at most,
    some seconds, a mean length.
    """
    for line in map(json.loads, (finished / METRICS).read_text().splitlines()):
        assert (
            line["tokens"] == pytest.approx(8 * line["length_mean"]) and 8 <= line["tokens"] <= 64
        )
        assert 0 <= line["truncation_rate"] <= 1
        assert all(line["seconds"][phase] > 0 for phase in ("rollout", "score", "update"))


def test_two_seeds_are_two_runs_in_two_folders():
    names = [
        home_of("default", dataclasses.replace(parse([])[1], seed=seed)).folder for seed in (0, 1)
    ]
    assert [str(name) for name in names] == ["runs/default-opd-seed0", "runs/default-opd-seed1"]
    assert "output" in to_dict(parse([])[1])
