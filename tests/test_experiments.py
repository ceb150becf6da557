"""Every cell of every study is a run that parses; what a study measures is measured elsewhere."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from jopd.config import parse
from jopd.diagnostics.style import COLORS

FOLDER = Path(__file__).parent.parent / "experiments"


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sys.path.insert(0, str(FOLDER))  # as for a script that stands there
GRID = load(FOLDER / "grid.py")
TABLES = load(FOLDER / "study_tables.py")
PICTURES = load(FOLDER / "study_pictures.py")
STUDIES = [path for path in sorted(FOLDER.glob("*.py")) if "\nCELLS = " in path.read_text()]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_cell_is_a_run_of_its_own(path):
    study = load(path)
    runs = [parse([str(path), *flags])[1] for flags in study.CELLS.values()]
    assert len(set(map(repr, runs))) == len(runs) >= 2 and len(study.SEEDS) >= 3
    assert {run.rows for run in runs} == {runs[0].rows}  # as many completions a step for all
    assert getattr(study, "BASELINE", TABLES.BEFORE) in {TABLES.BEFORE, *study.CELLS}


def test_a_mean_over_seeds_has_students_interval():
    # t of two degrees of freedom is 4.303, the standard error of 1, 2, 3 is 1 / sqrt(3): 2.48.
    assert TABLES.over_seeds("kl", [1.0, 2.0, 3.0]) == "2.000 ± 2.484"
    assert TABLES.over_seeds("accuracy", [0.25]) == "25.0"


@pytest.fixture
def one_run(tmp_path, monkeypatch):
    """A finished run of one cell and seed, as the trainer and the judge leave it."""
    monkeypatch.chdir(tmp_path)
    path = FOLDER / "topd.py"
    done = TABLES.folder(path, "topd", 1)
    done.mkdir(parents=True)
    report = (
        '{"results": {"accuracy": {"after": {"value": 0.5}}}, "resource": {"tokens_generated": 9}}'
    )
    (done / "report.json").write_text(report)
    lines = [
        {"step": i + 1, "false_alarms": float(i), "seconds": {"rollout": 1.0, "update": i}}
        for i in range(20)
    ]
    (done / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    judged = {
        "accuracy": {"value": 0.25, "low": 0.2, "high": 0.3, "count": 400},
        "late": {"kl": 0.125},
    }
    for file in (done / "judge.jsonl", done.parent / "before.jsonl"):
        file.write_text(json.dumps({"record": judged}) + "\n")
    return path


def test_a_run_is_read_at_its_ends(one_run):
    found = TABLES.found(one_run, "topd", 1)
    assert found["accuracy"] == 0.5 and found["tokens"] == 9
    assert found["judge/accuracy"] == 0.25 and found["judge/late/kl"] == 0.125
    assert found["first/false_alarms"] == 4.5 and found["last/false_alarms"] == 14.5
    assert found["step_seconds"] == 10.5  # 1 + the median of 0..19


def test_a_table_says_what_was_not_run(one_run):
    study = load(one_run)
    lines = TABLES.table(one_run, study, [*study.CELLS]).splitlines()
    assert lines[2].startswith("| before training | 25.0 |")
    assert {line.split("|")[-2].strip() for line in lines[3:]} == {"not run", "1"}
    assert next(line for line in lines if line.startswith("| topd |")).startswith("| topd | 25.0 |")


def test_cells_are_compared_on_the_same_problems_with_the_same_seeds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = FOLDER / "topd.py"
    study = load(path)

    def judge(cell, seed, right):
        file = TABLES.folder(path, cell, seed) / "judge.jsonl"
        file.parent.mkdir(parents=True)
        record = {"accuracy": sum(right) / len(right)}
        record["by_problem"] = {"problems": "the same", "accuracy": right}
        file.write_text(json.dumps({"record": record}) + "\n")

    judge("opd", 0, [1, 0, 0])
    judge("opd", 1, [0, 0, 1])
    judge("opd", 2, [0, 0, 0])
    judge("topd", 0, [1, 1, 1])
    judge("topd", 1, [1, 1, 0])
    head, _, row = TABLES.differences(path, study, ["opd", "topd"]).splitlines()
    assert head == "| less opd | accuracy (%) | seeds |"  # of the KL nothing is on file
    # Differences by problem 1/2, 1, 0: 50 points, their standard error 50 / sqrt(3), times 4.303: a
    # share can't rise by more than 100 points.
    # By seed 2/3 and 1/3: a standard error of 1/6, times t of one degree of freedom, 12.706.
    assert row == "| topd | +50.0 [-74.2, +100.0] ± 211.8 | 0, 1 |"
    before = TABLES.folder(path, "opd", 0).parent / "before.jsonl"
    before.write_text((TABLES.folder(path, "opd", 2) / "judge.jsonl").read_text())
    monkeypatch.delattr(study, "BASELINE")
    row = TABLES.differences(path, study, ["topd"]).splitlines()[-1]
    # Of no problem before, 1, 1 and 1/2 after.
    assert row.startswith("| topd | +83.3 [+11.6, +100.0] ± 211.8 |")


def test_rates_put_together_have_wilsons_interval():
    study = load(FOLDER / "ar_opd.py")
    rates = [{"value": 0.3, "count": 100}, {"value": 0.2, "count": 100}, {"count": 100}]
    # 50 of 300: z^2 = 3.8415, centre (1/6 + 0.0064024) / 1.0128049 = 0.170881,
    # half width sqrt(1/6 * 5/6 * 0.0128049 + 0.0064024^2) / 1.0128049 = 0.042115.
    assert study.share(rates, 1000, 0) == "167 [129, 213]"
    assert study.share(rates, 100, 1) == "16.7 [12.9, 21.3]"


def test_without_the_problems_cells_are_not_compared(one_run):
    study = load(one_run)
    assert "not on file" in TABLES.differences(one_run, study, [*study.CELLS])


def test_no_core_is_left_out_and_none_shared(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(GRID.os, "sched_getaffinity", lambda process: {0, 1, 2})
    monkeypatch.setattr(GRID, "judge", lambda *_: None)
    used = []
    monkeypatch.setattr(
        GRID,
        "run",
        lambda path, study, cell, seed, cores: used.append((cell, seed, frozenset(cores))),
    )
    study = load(FOLDER / "topd.py")
    GRID.run_all(FOLDER / "topd.py", study, ["opd", "topd"], (0, 1), 2)
    assert sorted((cell, seed) for cell, seed, _ in used) == [
        ("opd", 0),
        ("opd", 1),
        ("topd", 0),
        ("topd", 1),
    ]
    assert {cores for *_, cores in used} <= {frozenset({0, 2}), frozenset({1})}


PAGE = """The same, and a table before it.

| | length |
| --- | --- |
| sft | 57 |

| | accuracy (%) | KL to the teacher (nats) | seeds |
| --- | --- | --- | --- |
| before training | 47.8 | 0.307 | |
| sft | 65.9 ± 4.7 | 0.235 ± 0.071 | 0, 1, 2 |
| rlsd † | 12.0 ± 17.9 | 1.10 ± 0.87 | 0, 1, 2 |
| topd | | | not run |
| opd | 58.9 | 0.229 | 0 |

After it.
"""


def test_a_table_is_drawn_sorted_with_its_intervals(tmp_path):
    path = FOLDER / "leaderboard.py"
    figure = PICTURES.dots(path, load(path), PAGE, tmp_path / "picture.png")
    assert figure.get_suptitle() == "leaderboard · seeds 0, 1, 2 · 400 held-out problems (greedy)"
    accuracy, kl = figure.axes
    # From below: the row that nobody ran is not there.
    assert [text.get_text() for text in accuracy.get_yticklabels()] == ["rlsd †", "opd", "sft"]
    assert (accuracy.get_xlabel(), kl.get_xlabel()) == ("%", "nats")
    bars = [drawn for drawn in accuracy.containers]
    assert [bar[0].get_xydata().tolist() for bar in bars] == [[[12.0, 0]], [[58.9, 1]], [[65.9, 2]]]
    ends = [bar[2][0].get_segments()[0][:, 0] if bar[2] else None for bar in bars]
    assert ends[0] == pytest.approx([-5.9, 29.9]) and ends[2] == pytest.approx([61.2, 70.6])
    assert ends[1] is None  # of one seed there is no interval
    withdrawn, *others = [bar[0].get_markerfacecolor() for bar in bars]
    assert withdrawn == "white" and "white" not in others
    (before,) = [line for line in accuracy.lines if line.get_label() == "before training"]
    assert list(before.get_xdata()) == [47.8, 47.8]
    assert len(figure.legends[0].texts) == 3


def test_the_leaderboards_page_holds_what_its_picture_shows():
    study, page = load(FOLDER / "leaderboard.py"), (FOLDER / "leaderboard.md").read_text()
    for column in study.DOTS:
        cells = [name.removesuffix(" †") for name in PICTURES.dots_of(page, column)]
        assert sorted(cells) == sorted([*study.CELLS, TABLES.BEFORE])
    with pytest.raises(ValueError, match="no table with a column 'precision'"):
        PICTURES.dots_of(page, "precision")


def test_curves_say_their_study_and_seeds_and_one_colour_is_one_cell(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = FOLDER / "ar_opd.py"
    study = load(path)
    for cell, seed, end in (("full", 0, 0.6), ("full", 1, 0.8), ("sft", 0, 0.9)):
        run = TABLES.folder(path, cell, seed)
        run.mkdir(parents=True)
        (run / "judge.jsonl").touch()
        (run / "metrics.jsonl").touch()
        lines = [
            {"step": step, "accuracy": {"value": value}} for step, value in ((0, 0.5), (8, end))
        ]
        (run / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    figure = PICTURES.curves(path, study, [*study.CELLS], tmp_path / "picture.png")
    said = figure.get_suptitle()
    assert said.startswith("ar_opd · seeds 0, 1, 2: mean, shade from lowest to highest")
    assert said.endswith("held-out problems (sampled at temperature 1)")
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert lines["full"].get_ydata() == pytest.approx([0.5, 0.7])
    assert lines["full"].get_color() == COLORS["full"]
    assert lines["sft"].get_color() == COLORS["sft"]
    shade = figure.axes[0].collections[1].get_paths()[0].vertices
    assert {*shade[shade[:, 0] == 8, 1].round(3)} == {0.6, 0.8}
