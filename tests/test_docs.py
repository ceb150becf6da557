"""The site says everything, and what it says runs."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import jopd
from jopd import losses
from jopd.config import parse

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
ENTRIES = {
    entry for page in PAGES for entry in re.findall(r"^::: (\S+)", page.read_text(), re.MULTILINE)
}
# Files that commands name and users would have, in a folder of the test's.
ROW = {"prompt": "1 + 1 =", "question": "1 + 1 =", "solution": "2", "context": "2", "answer": "2"}
MINE = """
import dataclasses
from jopd.losses.opd import OPD

@dataclasses.dataclass(frozen=True)
class MyMethod(OPD):
    name = "mine"

def rows(split):
    return [{"prompt": "1 + 1 =", "answer": "2"}]

def score(completion, answer):
    return 1.0
"""


def blocks(language: str) -> list[tuple[Path, str]]:
    fence = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [(page, block) for page in PAGES for block in fence.findall(page.read_text())]


def commands() -> list[str]:
    """Every `python -m jopd.train ...` in a block of shell commands, its lines joined."""
    lines = [
        line.split(" && ")[-1].strip()
        for _, block in blocks("sh")
        for line in block.replace("\\\n", " ").splitlines()
    ]
    found = [re.match(r"(?:python -m jopd\.train|jopd train)\b(.*)", line) for line in lines]
    return sorted({match[1].strip() for match in found if match})


@pytest.mark.parametrize("name", losses.METHODS)
def test_every_method_has_a_page_with_its_settings(name):
    page, method = ROOT / "docs" / "methods" / f"{name}.md", losses.METHODS[name]
    assert f"::: {method.__module__}.{method.__qualname__}\n" in page.read_text()
    for part in ("## Formula", "## When", "## Traps", "## Measured", "## Settings"):
        assert part in page.read_text(), part
    navigation = (ROOT / "mkdocs.yml").read_text()
    assert f"methods/{name}.md" in navigation
    said = page.read_text()
    assert all(paper in said for paper in re.findall(r"arXiv:([\d.]+\d)", method.source))


@pytest.mark.parametrize("module", [jopd, losses], ids=lambda module: module.__name__)
def test_every_public_name_is_documented(module):
    documented = {entry.rpartition(".")[2] for entry in ENTRIES}
    reference = "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    # Not classes nor functions, so said in words; and a module, which has its own page.
    in_words = {"METHODS", "INPUTS", "losses"}
    missing = {*module.__all__} - documented - in_words
    assert not missing, f"no `::: ` entry in docs/ for {sorted(missing)}"
    assert all(f"`{name}`" in reference for name in in_words & {"METHODS", "INPUTS"})


def test_every_entry_is_there():
    """Without mkdocs: each `::: module.name` can be imported."""
    for entry in sorted(ENTRIES):
        name = entry
        while importlib.util.find_spec(name.partition(".")[0]) and not _is_module(name):
            name = name.rpartition(".")[0]
        thing = importlib.import_module(name)
        for attribute in entry.removeprefix(name).strip(".").split("."):
            thing = getattr(thing, attribute) if attribute else thing


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_site_parses(command, tmp_path, monkeypatch):
    words = shlex.split(command)
    if "--config" in words or "--help" in words:
        pytest.skip("reads a run's own config, or asks for help")
    for word in words:
        if word.endswith(".jsonl"):
            (tmp_path / word).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / word).write_text(json.dumps(ROW))
    (tmp_path / "my_file.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    assert parse(words)[1].steps > 0


def test_commands_are_found():
    assert len(commands()) > 20


@pytest.mark.parametrize(
    ("page", "example"),
    [
        pytest.param(page, block, id=f"{page.stem}-{number}")
        for number, (page, block) in enumerate(blocks("python"))
        # Tests of their own run these: test_readme.py the loop, which is the README's, and
        # test_after_training.py what reads a run's folder.
        if "optax" not in block and page.stem != "after_training"
    ],
)
def test_an_example_of_the_site_runs(page, example):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(example, str(page), "exec"), {"__name__": "example"})


def test_the_loop_is_the_readmes():
    (loop,) = [block for _, block in blocks("python") if "optax" in block]
    assert loop in (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    for module in ("material", "mkdocstrings", "nbconvert"):
        pytest.importorskip(module, reason="not installed: pip install 'jopd[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "methods" / "opd.html").exists()
    for notebook in (ROOT / "experiments" / "notebooks").glob("*.ipynb"):
        page = tmp_path / "experiments" / "notebooks" / f"{notebook.stem}.html"
        assert '<img alt="png"' in page.read_text(), notebook
