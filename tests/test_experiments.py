"""Every cell of every study is a run that parses; what a study measures is measured elsewhere."""

import importlib.util
from pathlib import Path

import pytest

from jopd.config import parse

FOLDER = Path(__file__).parent.parent / "experiments"


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GRID = load(FOLDER / "grid.py")
STUDIES = [path for path in sorted(FOLDER.glob("*.py")) if hasattr(load(path), "CELLS")]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_cell_is_a_run_of_its_own(path):
    study = load(path)
    runs = [parse([str(path), *flags])[1] for flags in study.CELLS.values()]
    assert len(set(map(repr, runs))) == len(runs) >= 2 and len(study.SEEDS) >= 3
    assert {run.rows for run in runs} == {runs[0].rows}  # as many completions a step for all


def test_a_mean_over_seeds_has_students_interval():
    # t of two degrees of freedom is 4.303, the standard error of 1, 2, 3 is 1 / sqrt(3): 2.48.
    assert GRID.over_seeds("kl", [1.0, 2.0, 3.0]) == "2.000 ± 2.484"
    assert GRID.over_seeds("accuracy", [0.25]) == "25.0"


def test_a_table_says_what_was_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = FOLDER / "topd.py"
    done = GRID.folder(path, "topd", 1)
    done.mkdir(parents=True)
    report = '{"results": {"accuracy": {"after": {"value": 0.5}}}, "run": {"seconds": 60}, "resource": {"tokens_generated": 9}}'
    (done / "report.json").write_text(report)
    lines = GRID.table(path, load(path)).splitlines()
    assert [line.split("|")[-2].strip() for line in lines[2:4]] == ["not run", "1"]
    assert "50.0" in lines[3]
