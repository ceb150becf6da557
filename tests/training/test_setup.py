"""From a command to a run that is ready, or to one line that says what does not fit: before
anything is compiled.
"""

import datetime
import json
import re
import shutil
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from transformers import AutoTokenizer

from jopd import models as models_
from jopd import train
from jopd.config import parse
from jopd.models import Compute, huggingface
from jopd.training import setup
from jopd.training.announcement import describe
from jopd.training.example import views_of
from jopd.training.fit import evaluation_batch
from tests.training.tiny import arguments, save_model, tokenizer


def prepared(command: list[str]) -> setup.Run:
    return setup.prepare(*parse(command))


def jsonl(path: Path, *rows) -> str:
    path.write_text(
        "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    )
    return f"jsonl:{path}"


# Data.


@pytest.mark.parametrize(
    "rows, message",
    [
        ((), "train.jsonl holds no examples"),
        (({"prompt": "Who?"}, "{not json\n"), "train.jsonl:2: not JSON"),
        (({"prompt": "Who?"}, "[1]\n"), "train.jsonl:2: holds list, not an object"),
        (
            ({"prompt": "Who?"}, {"promt": "Who?"}),
            "train.jsonl:2: needs either 'prompt' or 'messages', and has neither: it has promt",
        ),
        (
            ({"prompt": "Who?"}, {"answer": "4"}),
            "train.jsonl:2: needs either 'prompt' or 'messages', and has neither",
        ),
        (({"prompt": True},), "train.jsonl:1: 'prompt' is bool True, not text or a number"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(rows, message, tiny, tmp_path, refused):
    source = jsonl(tmp_path / "train.jsonl", *rows)
    command = arguments(tiny["student"], tiny["teacher"], tmp_path / "run", data__source=source)
    assert message in refused(command)
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_not_there_is_named(tiny, tmp_path, refused):
    error = refused(
        arguments(
            tiny["student"], tiny["teacher"], tmp_path / "run", data__source="jsonl:nowhere.jsonl"
        )
    )
    assert "nowhere.jsonl can't be read" in error


def test_prompts_that_are_too_long_are_counted_and_said(tiny, tmp_path, refused):
    long, short = "the " * 100, "four and four"
    held_out = jsonl(tmp_path / "held_out.jsonl", {"prompt": long}, *[{"prompt": short}] * 8)
    source = jsonl(tmp_path / "train.jsonl", *[{"prompt": long}] * 2, *[{"prompt": short}] * 8)
    own = {
        "data__source": source,
        "data__held_out_split": held_out.removeprefix("jsonl:"),
        "rollout__max_prompt_tokens": 50,
    }
    run = prepared(arguments(tiny["student"], tiny["teacher"], tmp_path / "run", **own))
    length = len(
        tokenizer().apply_chat_template(
            [{"role": "user", "content": long}], add_generation_prompt=True, return_dict=False
        )
    )
    said = f"2 dropped: student prompt longer than max_prompt_tokens=50 (up to {length})"
    assert said in describe(run)["data"] and said.replace("2", "1", 1) in describe(run)["held out"]
    assert (len(run.train.examples), len(run.held_out.examples)) == (8, 7)
    own["rollout__max_prompt_tokens"] = 5
    error = refused(arguments(tiny["student"], tiny["teacher"], tmp_path / "run", **own))
    assert (
        "0 of 10 examples fit; 10 dropped: student prompt longer than max_prompt_tokens=5" in error
        and "raise the limit" in error
    )


def test_references_and_contexts_that_are_missing_are_named(tiny, tmp_path, refused):
    source = jsonl(
        tmp_path / "train.jsonl", *({"prompt": f"Who? {number}"} for number in range(20))
    )
    command = arguments(tiny["student"], tiny["teacher"], tmp_path / "run", data__source=source)
    assert "has no solution to use as a reference completion" in refused(
        ["--method", "sft", *command]
    )
    assert "has neither a context nor a solution for a privileged view" in refused(
        ["--method", "opsd", *command]
    )


# Models.


def test_a_model_that_is_not_there_is_named(tiny, tmp_path, refused):
    assert "model './nowhere' is neither a Hugging Face folder nor a .gguf file" in refused(
        arguments("./nowhere", tiny["teacher"], tmp_path / "run")
    )
    assert "model 'jopd:nobody' does not ship with jopd" in refused(
        arguments(tiny["student"], "jopd:nobody", tmp_path / "run")
    )


def test_another_tokenizer_is_refused_naming_both_models(tiny, tmp_path, refused):
    words = AutoTokenizer.from_pretrained(tiny["student"])
    words.add_tokens(["zebra"])
    other = save_model(tmp_path / "other", seed=3, words=words)
    error = refused(arguments(tiny["student"], other, tmp_path / "run"))
    assert (
        f"student.model={tiny['student']} and teacher.model={other} need one tokenizer, but "
        "'zebra' is absent in the student's" in error
    )


def test_vocabularies_that_differ_by_padding_share_what_both_have(tiny, tmp_path):
    padded = save_model(tmp_path / "padded", seed=3, padding=24)
    size = len(tokenizer())
    for student, teacher in ((tiny["student"], padded), (padded, tiny["teacher"])):
        run = prepared(arguments(student, teacher, tmp_path / "run"))
        assert run.program.decoding.vocabulary == size
        assert {
            run.student.architecture.vocabulary_size,
            run.teacher.architecture.vocabulary_size,
        } == {size, size + 24}


def test_stop_tokens_that_differ_are_warned_of_and_the_students_decide(tiny, tmp_path):
    own = tokenizer().eos_token_id
    other = save_model(tmp_path / "other", seed=3, stop_tokens=(own, 7))
    with pytest.warns(
        UserWarning, match="the student stops at .*, the teacher at .*: the student's decide"
    ):
        run = prepared(arguments(tiny["student"], other, tmp_path / "run"))
    assert run.program.decoding.stop_tokens == run.student.stop_tokens != run.teacher.stop_tokens


def test_a_template_that_writes_the_day_goes_on_on_another_day(tmp_path, monkeypatch):
    student = save_model(tmp_path / "student", seed=1)
    template = student / "chat_template.jinja"
    template.write_text("{{ strftime_now('%-d') }}" + template.read_text())
    command = arguments(student, "self", tmp_path / "run")
    with pytest.warns(UserWarning, match="the day into prompts: it is view.date=2024-07-26"):
        first = prepared(command)

    class Tomorrow(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2099, 12, 31)

    # Where transformers asks for the day.
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Tomorrow)
    with pytest.warns(UserWarning, match="the day into prompts"):
        assert prepared(command).facts == first.facts


def test_a_student_that_could_never_stop_is_refused(tiny, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(huggingface, "with_end_of_turn", lambda checkpoint, source: ())
    assert "names no stop token: set eos_token_id" in refused(
        arguments(tiny["student"], tiny["teacher"], tmp_path / "run")
    )


def test_lengths_beyond_a_models_positions_are_refused(tiny, tmp_path, refused):
    error = refused(
        arguments(tiny["student"], tiny["teacher"], tmp_path / "run", rollout__max_new_tokens=300)
    )
    assert (
        "rollout.max_prompt_tokens + max_new_tokens = 556 is more than the 512 positions of the "
        "student" in error
    )


# The mesh (of the tests' eight devices) and the disk.


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mesh__data": 3}, "mesh data=3, fsdp=1, tensor=1 does not fill the 8 devices"),
        ({"mesh__tensor": 3}, "mesh data=-1, fsdp=1, tensor=3 does not fill the 8 devices"),
        ({"mesh__tensor": 16}, "mesh data=-1, fsdp=1, tensor=16 does not fill the 8 devices"),
        (
            {"prompts": 12},
            "prompts=12 × rollout.samples=1 make 12 rows a batch, not a multiple of the 8 ways",
        ),
        (
            {"micro_batches": 2},
            "micro_batches=2 leaves 4 rows a part, not a multiple of the 8 ways",
        ),
    ],
)
def test_what_the_mesh_does_not_divide_is_refused(changes, message, tiny, tmp_path, refused):
    assert message in refused(
        arguments(tiny["student"], tiny["teacher"], tmp_path / "run", **changes)
    )


def test_evaluations_are_filled_up_and_rows_are_what_is_split(tiny, tmp_path):
    changes = {"evaluation__batch": 3, "prompts": 4, "rollout__samples": 4, "micro_batches": 2}
    run = prepared(arguments(tiny["student"], tiny["teacher"], tmp_path / "run", **changes))
    # Eight devices, two parts.
    assert run.held_out.prompts_per_step == 16 and len(run.held_out.examples) == 8
    assert evaluation_batch(100, 1, run.mesh) == 104


def test_a_disk_that_is_too_small_is_said_before_the_run(tiny, tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    with pytest.raises(SystemExit) as stop:
        train.main(arguments(tiny["student"], tiny["teacher"], tmp_path / "run"))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "0 MB are free there" in error and "lower --checkpoint.keep" in error
    assert error.count("\n") == 1


def test_a_method_of_one_model_refuses_another_teacher(tiny, tmp_path, refused):
    other = arguments(tiny["student"], tiny["teacher"], tmp_path / "run")
    error = refused([*other, "--method", "edge_opd"])
    assert "method edge_opd needs one model" in error and "set --teacher.model self" in error
    error = refused([*other, "--method", "rlsd", "--method.no-verifier", "--rollout.samples", "1"])
    assert "method rlsd needs one model" in error
    # The same weights under their own name are that model.
    same = arguments(tiny["student"], tiny["student"], tmp_path / "run")
    setup.open_models(parse([*same, "--method", "edge_opd"])[1])


# Who the teacher is.


def leaves(tree) -> list[jax.Array]:
    return jax.tree.leaves(tree)


def pointers(tree) -> set[int]:
    return {
        part.data.unsafe_buffer_pointer()
        for leaf in leaves(tree)
        for part in leaf.addressable_shards
    }


def run_of_self(tiny, folder, *flags: str) -> setup.Run:
    return prepared(["--method", "opsd", *arguments(tiny["student"], "self", folder), *flags])


def test_another_model_is_frozen_and_read_as_it_is_asked_for(tiny, tmp_path):
    run = prepared(
        [
            *arguments(tiny["student"], tiny["teacher"], tmp_path / "run"),
            "--teacher.dtype",
            "bfloat16",
            "--teacher.compute.remat",
            "none",
        ]
    )
    assert all(leaf.dtype == np.dtype("bfloat16") for leaf in leaves(run.fixed.teacher))
    assert all(leaf.dtype == np.dtype("float32") for leaf in leaves(run.state.params))
    assert (
        run.program.teacher == models_.abstract(run.teacher.architecture, Compute(remat="none"))[0]
    )
    models = {"jopd", "student", "student_fingerprint", "teacher", "teacher_fingerprint"}
    assert run.facts.keys() == models | {"stop_tokens", "train_fingerprint", "held_out_fingerprint"}
    assert not run.fixed.base and not run.state.ema_teacher


def test_a_frozen_self_teacher_survives_the_donation_of_the_student(tiny, tmp_path):
    run = run_of_self(tiny, tmp_path / "run")
    chex.assert_trees_all_equal(run.fixed.teacher, run.state.params)
    assert pointers(run.fixed.teacher).isdisjoint(pointers(run.state.params))
    assert run.program.views == ("privileged",)


def test_with_adapters_the_frozen_teacher_is_the_base_itself(tiny, tmp_path):
    run = run_of_self(
        tiny, tmp_path / "run", "--student.lora.rank", "2", "--teacher.compute.remat", "none"
    )
    assert pointers(run.fixed.teacher) == pointers(run.fixed.base)  # no second copy
    names = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(run.state.params)}
    assert names == {"lora_a", "lora_b"}
    assert (
        run.program.teacher == models_.abstract(run.student.architecture, Compute(remat="none"))[0]
    )
    assert "LoRA rank 2" in describe(run)["student"]


@pytest.mark.parametrize("update", ["ema", "live"])
@pytest.mark.parametrize("rank", [0, 2])
def test_a_teacher_that_follows_has_no_parameters_of_its_own(update, rank, tiny, tmp_path):
    flags = [
        "--method.teacher-update",
        update,
        "--teacher.compute.remat",
        "none",
        "--student.lora.rank",
        str(rank),
    ]
    run = run_of_self(tiny, tmp_path / "run", *flags)
    assert run.fixed.teacher == {} and bool(run.state.ema_teacher) == (update == "ema")
    lora = models_.LoRA(rank=rank)
    assert (
        run.program.teacher
        == models_.abstract(run.student.architecture, Compute(remat="none"), lora)[0]
    )
    # Its parameters are found, and are the student's.
    found = run.program.teacher_params(run.state, run.fixed)
    chex.assert_trees_all_equal(found, run.student.params)
    assert f"self ({update})" in describe(run)["teacher"]


def test_a_method_without_a_teacher_is_measured_against_one_if_there_is_one(tiny, tmp_path):
    command = lambda teacher: [
        "--method",
        "sft",
        *arguments(tiny["student"], teacher, tmp_path / "run", rollout__max_new_tokens=200),
    ]
    run = prepared(command(tiny["teacher"]))
    assert run.program.views == ("teacher",) and set(run.train[0]["contexts"]) == {
        "student",
        "teacher",
    }
    assert run.train[0]["reference"]["tokens"].shape == (8, 200)
    alone = prepared(command("none"))
    assert (
        alone.program.views == () and alone.teacher is None and describe(alone)["teacher"] == "none"
    )


def test_what_it_will_do_is_said(tiny, tmp_path):
    run = prepared(arguments(tiny["student"], tiny["teacher"], tmp_path / "run"))
    said = describe(run)
    size = sum(leaf.size for leaf in leaves(run.state.params))
    assert (
        said["method"].startswith("opd: ")
        and f"{size:,} parameters" in said["student"]
        and str(tiny["teacher"]) in said["teacher"]
    )
    assert (
        re.search(r"builtin: 32 of 32 examples fit", said["data"])
        and said["held out"] == "8 of 8 examples fit"
    )
    assert said["mesh"].startswith("data 8, fsdp 1, tensor 1 on 8 ×") and said["output"] == str(
        tmp_path / "run"
    )
    assert "6 steps" in said["run"] and "up to 8 tokens" in said["rollouts"]
    example = run.held_out.examples[0]
    shown = views_of(run, example)
    assert list(shown) == ["student", "teacher"] and shown["student"] == shown["teacher"]
