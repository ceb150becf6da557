"""The notebooks run as a reader would run them, each in a kernel of its own, and lie in the
repository executed.
"""

import os
import pathlib
import resource

import pytest

nbformat = pytest.importorskip(
    "nbformat", reason="nbformat is not installed: pip install 'jopd[notebooks]'"
)

NOTEBOOKS = sorted(pathlib.Path(__file__).parents[1].glob("experiments/notebooks/*.ipynb"))
# Of processor time: a minute on two cores, twice over, since cores that others share count longer.
SECONDS = 240
SIZE = 400 * 1024  # bytes, outputs included

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def errors(notebook):
    return [
        out.ename
        for cell in code_cells(notebook)
        for out in cell.outputs
        if out.output_type == "error"
    ]


@each_notebook
def test_is_saved_executed_and_small(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), (
        "not run from top to bottom"
    )
    assert any("image/png" in out.get("data", {}) for cell in cells for out in cell.outputs), (
        "no picture"
    )
    assert not errors(notebook)
    assert path.stat().st_size < SIZE


@pytest.mark.slow
@each_notebook
def test_runs(path, monkeypatch):
    nbclient = pytest.importorskip(
        "nbclient", reason="nbclient is not installed: pip install 'jopd[notebooks]'"
    )
    pytest.importorskip(
        "ipykernel", reason="ipykernel is not installed: pip install 'jopd[notebooks]'"
    )
    monkeypatch.setenv("JAX_PLATFORMS", os.environ.get("JAX_PLATFORMS", "cpu"))
    notebook = nbformat.read(path, as_version=4)
    for cell in code_cells(notebook):
        cell.outputs = []
    before = processor_seconds()
    folder = {"metadata": {"path": str(path.parent)}}
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources=folder
    ).execute()
    assert not errors(notebook)
    assert processor_seconds() - before < SECONDS


def processor_seconds():
    """Of the kernels that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
