import dataclasses
import json

import filelock
import huggingface_hub
import pytest
import yaml
from safetensors.numpy import load_file

from jopd import losses
from jopd.config import Config, MeshConfig
from jopd.export import main
from jopd.train import main as train
from jopd.training import optimizer
from jopd.training.export_job import on_this_machine
from tests.training.problem import lenient
from tests.training.tiny import arguments


@pytest.fixture(params=[2, 4])
def run(request, tiny, tmp_path, monkeypatch, quick_compilation):
    """A finished run with the checkpoints of its steps 2 and 4, the first of them the best, whether
    one was due there or not.
    """
    make = optimizer.make
    monkeypatch.setattr(optimizer, "make", lambda *settings: lenient(make(*settings)))
    scores = iter([0.0, 0.75, 0.5])
    monkeypatch.setattr("jopd.training.loop.score_of", lambda record: next(scores))
    folder = tmp_path / "run"
    flags = [f"--checkpoint.every={request.param}", "--student.lora.rank=2"]
    train([*arguments(tiny["student"], tiny["teacher"], folder, steps=4), *flags])
    return folder


def test_the_student_of_a_checkpoint_that_was_kept(run, tmp_path, monkeypatch, capsys):
    files = ("model.safetensors", "config.json", "tokenizer.json")
    main([str(run), "--step", "latest", "--output", str(tmp_path / "last")])
    for name in files:
        assert (tmp_path / "last" / name).read_bytes() == (run / "student" / name).read_bytes()
    adapter = "adapter_model.safetensors"
    exported = tmp_path / "last-adapter" / adapter
    assert exported.read_bytes() == (run / "adapter" / adapter).read_bytes()
    main([str(run), "--output", str(tmp_path / "best")])
    assert "after step 2 " in capsys.readouterr().out
    best, last = (load_file(tmp_path / name / files[0]) for name in ("best", "last"))
    assert any((best[name] != last[name]).any() for name in best)
    # Its card tells of the evaluations until then.
    measured = [json.loads(line) for line in (run / "evaluations.jsonl").open()]
    card = (tmp_path / "best" / "README.md").read_text()
    assert f"{measured[1]['kl']['value']:.3f} [" in card
    main([str(run), "--step", "2", "--output", str(tmp_path / "best")])  # the same again
    # Where the run's disk has no room for a checkpoint more.
    with monkeypatch.context() as of_run:
        of_run.setattr("jopd.training.room.free_at", lambda _: 1_000)
        main([str(run), "--step", "2", "--output", str(tmp_path / "best")])
    # On a machine that has not the run's devices.
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["mesh"] = {"data": 1, "fsdp": 64, "tensor": 4}
    settings["student"]["compute"]["attention"] = "splash"
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    main([str(run), "--step", "2", "--output", str(tmp_path / "elsewhere")])
    elsewhere = load_file(tmp_path / "elsewhere" / files[0])
    assert all((best[name] == elsewhere[name]).all() for name in best)

    with pytest.raises(SystemExit):
        main([str(run), "--step", "3", "--output", str(tmp_path / "none")])
    assert "step=3" in (said := capsys.readouterr().err) and "steps 2, 4" in said
    with filelock.FileLock(run / ".lock"), pytest.raises(SystemExit):
        main([str(run), "--output", str(tmp_path / "none")])
    assert "in use by another process" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(SystemExit):
        main([str(run), "--output", str(tmp_path / "mine")])
    assert (tmp_path / "mine" / "notes.txt").exists() and not (tmp_path / "none").exists()


def test_an_upload_is_what_was_asked_for_and_fails_in_a_line(run, tmp_path, monkeypatch, capsys):
    sent = []

    class Hub:
        def whoami(self):
            return {"name": "me", "auth": {"accessToken": {"role": "write"}}}

        def create_repo(self, name, *, private, exist_ok):
            return f"https://hub/{name}"

        def upload_folder(self, *, folder_path, repo_id, **_):
            if sent:
                raise ConnectionError("away")
            sent.append((repo_id, sorted(path.name for path in folder_path.iterdir())))

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    command = [str(run), "--output", str(tmp_path / "best"), "--hub.push-to", "me/best"]
    main(command)
    ((name, files),) = sent
    assert name == "me/best" and {"README.md", "model.safetensors"} <= set(files)
    with pytest.raises(SystemExit):
        main(command)
    assert f"hf upload me/best {tmp_path / 'best'}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing", "--output", "x"], "missing holds no run"),
        (["missing", "--output", "x", "--step", "last"], "step=last must be best, latest or"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_a_batch_that_does_not_divide_here_is_no_matter():
    """Eight devices, three rows."""
    run = Config(losses.get("opd"), prompts=3, mesh=MeshConfig(data=-1, fsdp=1, tensor=1))
    assert on_this_machine(run).mesh == MeshConfig(data=1, fsdp=1, tensor=-1)
    fits = dataclasses.replace(run, prompts=8)
    assert on_this_machine(fits) == fits
