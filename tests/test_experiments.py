"""Every cell of every study is a run that parses; what a study measures is measured elsewhere."""

import json
from collections.abc import Sequence
from itertools import pairwise

import pytest

from jopd.config import parse
from jopd.diagnostics.style import COLORS
from tests.scripts import EXPERIMENTS, load, neighbour

FOLDER = EXPERIMENTS
GRID = neighbour("grid")
LEDGER = neighbour("ledger")
TABLES = neighbour("study_tables")
PICTURES = neighbour("study_pictures")
STUDIES = [path for path in sorted(FOLDER.glob("*.py")) if "\nCELLS = " in path.read_text()]
VERSIONS = {"jax": "0.10.2"}


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_cell_is_a_run_of_its_own(path):
    study = load(path)
    runs = [parse([str(path), *flags])[1] for flags in study.CELLS.values()]
    assert len(set(map(repr, runs))) == len(runs) >= 2 and len(study.SEEDS) >= 3
    assert {run.rows for run in runs} == {runs[0].rows}  # as many completions a step for all
    assert getattr(study, "BASELINE", LEDGER.BEFORE) in {LEDGER.BEFORE, *study.CELLS}


def test_a_mean_over_seeds_has_students_interval():
    # t of two degrees of freedom is 4.303, the standard error of 1, 2, 3 is 1 / sqrt(3): 2.48.
    assert TABLES.over_seeds("kl", [1.0, 2.0, 3.0]) == "2.000 ± 2.484"
    assert TABLES.over_seeds("accuracy", [0.25]) == "25.0"


def entry(cell: str, seed: int, right: Sequence[int] = (), rate: str = "", **changes):
    """A line of a ledger."""
    judged = {"measures": {"accuracy": sum(right) / len(right)}} if right else {"measures": {}}
    judged["by_problem"] = {"problems": "the same", "accuracy": list(right)} if right else {}
    line = {
        "settings": "",
        "command": "",
        "chosen": None,
        "judged": judged,
        "measured": {"tokens": 9.0, "step_seconds": float(seed)},
        "along": {},
        "commit": "abc",
        "machine": "a machine, 2 cores",
        "versions": VERSIONS,
        "seconds": 60.0,
    }
    return LEDGER.Entry(cell, rate, seed, **{**line, **changes})


def test_a_run_is_read_at_its_ends(tmp_path):
    report = {"results": {"accuracy": {"after": {"value": 0.5}}}}
    report["resource"] = {"tokens_generated": 9}
    (tmp_path / "report.json").write_text(json.dumps(report))
    lines = [
        {"step": i + 1, "false_alarms": float(i), "seconds": {"rollout": 1.0, "update": i}}
        for i in range(20)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluations = [
        {"step": step, "accuracy": {"value": value, "count": 4}}
        for step, value in ((0, 0.5), (8, 1))
    ]
    (tmp_path / "evaluations.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in evaluations)
    )
    found = TABLES.ends(tmp_path)
    assert found["accuracy"] == 0.5 and found["tokens"] == 9
    assert found["first/false_alarms"] == 4.5 and found["last/false_alarms"] == 14.5
    assert found["step_seconds"] == 10.5  # 1 + the median of 0..19
    study = load(FOLDER / "ar_opd.py")
    assert TABLES.along(tmp_path, study)["accuracy"] == [
        {"step": 0, "value": 0.5, "count": 4},
        {"step": 8, "value": 1, "count": 4},
    ]


def test_a_table_says_what_was_not_run_and_what_its_numbers_are_of():
    study = load(FOLDER / "topd.py")
    found = dict.fromkeys([LEDGER.BEFORE, *study.CELLS], ())
    cell = "embeddings, 0.1"
    found |= {LEDGER.BEFORE: [entry(LEDGER.BEFORE, 0, [1, 0])], cell: [entry(cell, 1, [1, 1])]}
    lines = TABLES.table(study, found).splitlines()
    assert lines[2].startswith("| before training | 50.0 [")
    (row,) = lines[3:]
    assert row.startswith("| embeddings, 0.1 |") and row.split("|")[-2].strip() == "1"
    assert TABLES.not_run({**found, "opd": ()}).startswith("Not run yet: *opd*; ")
    assert TABLES.made_of(found) == (
        "2 runs at commits abc on a machine, 2 cores, jax 0.10.2, 2 minutes in all, judging "
        "included."
    )


def test_cells_are_compared_on_the_same_problems_with_the_same_seeds():
    study = load(FOLDER / "topd.py")
    opd = [
        entry("opd", seed, right) for seed, right in enumerate(([1, 0, 0], [0, 0, 1], [0, 0, 0]))
    ]
    topd = [entry("topd", seed, right) for seed, right in enumerate(([1, 1, 1], [1, 1, 0]))]
    head, _, row = TABLES.differences(study, {"opd": opd, "topd": topd}).splitlines()
    assert head == "| less opd | accuracy (%) | seeds |"  # of the KL nothing is on file
    # By problem 1/2, 1, 0: a variance of the mean of 1/12; by seed 2/3 and 1/3: of 1/36. Their sum
    # is 1/9, of (1/9)^2 / ((1/12)^2 / 2 + (1/36)^2 / 1) = 2.9091 degrees of freedom: 3.2395 / 3.
    # And a share can't rise by more than 100 points.
    assert row == "| topd | +50.0 [-58.0, +100.0] | 0, 1 |"
    # Before training there is one model, and all three seeds are compared with it: 2/9 against 0.
    before = [entry(LEDGER.BEFORE, 0, [0, 0, 0])]
    _, _, row = TABLES.differences(study, {"opd": opd, LEDGER.BEFORE: before}).splitlines()
    assert row.startswith(f"| {LEDGER.BEFORE} | -22.2 [")
    other = entry("topd", 0, [1, 1, 1])
    other.judged["by_problem"]["problems"] = "others"
    assert TABLES.differences(study, {"opd": opd, "topd": [other]}) == ""


def test_a_page_has_its_tables_between_the_marks():
    page = f"Before.\n{TABLES.BEGIN}\nold\n{TABLES.END}\nAfter.\n"
    made = TABLES.with_tables(page, "| new |")
    assert made == f"Before.\n{TABLES.BEGIN}\n\n| new |\n\n{TABLES.END}\nAfter.\n"
    assert TABLES.with_tables(made, "| new |") == made
    with pytest.raises(ValueError, match="write them where tables belong"):
        TABLES.with_tables("no marks", "")


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_page_holds_what_its_ledger_gives(path):
    if not LEDGER.file_of(path).is_file():
        pytest.skip("has no ledger yet")
    study, page = load(path), path.with_suffix(".md").read_text(encoding="utf-8")
    assert TABLES.with_tables(page, GRID.tables_of(path, study)) == page


def test_rates_put_together_have_wilsons_interval():
    study = load(FOLDER / "ar_opd.py")
    rates = [{"value": 0.3, "count": 100}, {"value": 0.2, "count": 100}, {"count": 100}]
    # 50 of 300: z^2 = 3.8415, centre (1/6 + 0.0064024) / 1.0128049 = 0.170881,
    # half width sqrt(1/6 * 5/6 * 0.0128049 + 0.0064024^2) / 1.0128049 = 0.042115.
    assert study.share(rates, 1000, 0) == "167 [129, 213]"
    assert study.share(rates, 100, 1) == "16.7 [12.9, 21.3]"


def test_no_core_is_left_out_and_none_shared(monkeypatch):
    monkeypatch.setattr(GRID.os, "sched_getaffinity", lambda process: {0, 1, 2})
    used = []
    GRID.in_parallel([*range(4)], lambda job, cores: used.append((job, frozenset(cores))), 2)
    assert sorted(job for job, _ in used) == [0, 1, 2, 3]
    assert {cores for _, cores in used} <= {frozenset({0, 2}), frozenset({1})}


def test_a_cell_that_fails_is_told_at_once_and_keeps_none_of_the_others_from_running(capsys):
    ran, told = [], []

    def do(job, cores):
        if job == 1:
            raise SystemExit("the second failed")
        ran.append(job)
        told.append(capsys.readouterr().err)

    with pytest.raises(SystemExit, match="the second failed"):
        GRID.in_parallel([*range(4)], do, 1)
    assert ran == [0, 2, 3] and told == ["", "the second failed\n", ""]


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A ledger elsewhere, runs that take no time, and a judge who likes high learning rates."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(LEDGER, "FOLDER", tmp_path / "ledger")
    monkeypatch.setattr(LEDGER, "commit", lambda: "abc")
    made = []

    def start(arguments, log, cores):
        made.append(arguments)
        flags = dict(pairwise(arguments))
        if arguments[0] == "jopd.train":
            output = tmp_path / flags["--output"]
            output.mkdir(parents=True)
            (output / "report.json").write_text(
                '{"results": {}, "resource": {"tokens_generated": 1}}'
            )
            return
        of_rate = {"2e-4": 0.25, "5e-4": 0.75, "1.5e-3": 0.5}
        value = next((x for rate, x in of_rate.items() if rate in flags["--model"]), 0.0)
        record = {"accuracy": {"value": value}, "by_problem": {"problems": "p", "accuracy": [1, 0]}}
        (tmp_path / flags["--save"]).write_text(json.dumps({"record": record}) + "\n")

    monkeypatch.setattr(GRID, "start", start)
    return made


def test_a_rate_is_chosen_on_one_seed_and_other_problems(kept):
    path = FOLDER / "leaderboard.py"
    study = load(path)
    study.HEADROOM = {}
    GRID.run_all(path, study, ["opd", "sft"], (0, 1), 1)
    assert GRID.chosen_rates(path, study, ["opd", "sft"]) == {"opd": "5e-4", "sft": "5e-4"}
    trained = [arguments for arguments in kept if arguments[0] == "jopd.train"]
    assert len(trained) == 2 * 3 + 2  # every rate with seed 0, the best one with seed 1
    asked = [arguments for arguments in kept if arguments[0] == "jopd.evaluate"]
    on_others = [arguments for arguments in asked if "--data.seed" in arguments]
    assert len(on_others) == 2 * 3 + 1 and len(asked) - len(on_others) == 2 * 2 + 1
    assert GRID.choices(path, study, ["opd"]) == {
        LEDGER.BEFORE: {"": 0.0},
        "opd": {"2e-4": 0.25, "5e-4": 0.75, "1.5e-3": 0.5},
    }
    assert "| opd | 25.0 | **75.0** | 50.0 |" in GRID.tables_of(path, study)
    found = GRID.on_file(path, study, [*study.CELLS])
    assert [(it.rate, it.seed) for it in found["opd"]] == [("5e-4", 0), ("5e-4", 1)]
    assert found["topd"] == [] and len(found[LEDGER.BEFORE]) == 1


def test_what_is_in_the_ledger_is_not_run_again_unless_its_settings_have_changed(kept):
    path = FOLDER / "topd.py"
    study = load(path)
    GRID.run_all(path, study, ["opd"], (0,), 1)
    count = len(kept)
    GRID.run_all(path, study, ["opd"], (0,), 1)
    assert len(kept) == count
    study.CELLS["opd"] = ["--steps", "3"]
    assert GRID.on_file(path, study, ["opd"])["opd"] == []


def test_cells_are_drawn_sorted_with_their_intervals(tmp_path):
    path = FOLDER / "leaderboard.py"
    found = {LEDGER.BEFORE: [entry(LEDGER.BEFORE, 0, [1, 0, 0, 0])], "topd": []}
    found |= {"opd": [entry("opd", 0, [1, 1, 1, 0])], "sft": [entry("sft", 0, [1, 1, 0, 0])]}
    figure = PICTURES.dots(path, load(path), found, tmp_path / "picture.png")
    assert figure.get_suptitle() == "leaderboard · seeds 0, 1, 2 · 400 held-out problems (greedy)"
    accuracy, kl = figure.axes
    # From below: the cell that nobody ran is not there.
    assert [text.get_text() for text in accuracy.get_yticklabels()] == ["sft", "opd"]
    assert (accuracy.get_xlabel(), kl.get_xlabel()) == ("%", "nats")
    bars = [drawn for drawn in accuracy.containers]
    assert [bar[0].get_xydata().tolist() for bar in bars] == [[[50.0, 0]], [[75.0, 1]]]
    # Of 1, 1, 1, 0: a standard error of 1/4, and 3.1824 of them by Student's t.
    ends = bars[1][2][0].get_segments()[0][:, 0]
    assert ends == pytest.approx([75 - 79.56, 75 + 79.56], abs=0.01)
    (before,) = [line for line in accuracy.lines if line.get_label() == "before training"]
    assert list(before.get_xdata()) == [25.0, 25.0]


def test_curves_say_their_study_and_seeds_and_one_colour_is_one_cell(tmp_path):
    path = FOLDER / "ar_opd.py"

    def run(cell: str, seed: int, end: float):
        points = [{"step": step, "value": value} for step, value in ((0, 0.5), (8, end))]
        return entry(cell, seed, along={"accuracy": points})

    found = {"full": [run("full", 0, 0.6), run("full", 1, 0.8)], "sft": [run("sft", 0, 0.9)]}
    figure = PICTURES.curves(path, load(path), found, tmp_path / "picture.png")
    said = figure.get_suptitle()
    assert said.startswith("ar_opd · seeds 0, 1, 2: mean, shade from lowest to highest")
    assert said.endswith("held-out problems (sampled at temperature 1)")
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert lines["full"].get_ydata() == pytest.approx([0.5, 0.7])
    assert lines["full"].get_color() == COLORS["full"]
    assert lines["sft"].get_color() == COLORS["sft"]
    shade = figure.axes[0].collections[0].get_paths()[0].vertices
    assert {*shade[shade[:, 0] == 8, 1].round(3)} == {0.6, 0.8}


def test_two_judges_records_are_one_with_the_seconds_names():
    first = LEDGER.kept(
        {"kl": 0.1, "by_problem": {"problems": "p", "kl": {"sums": [1.0], "tokens": [4]}}}, ["kl"]
    )
    second = LEDGER.kept(
        {"accuracy": {"value": 0.5}, "by_problem": {"problems": "q", "accuracy": [1, 0]}},
        ["accuracy"],
    )
    made = LEDGER.joined(first, "facts", second)
    assert made["measures"] == {"kl": 0.1, "facts/accuracy": 0.5}
    assert made["by_problem"] == {
        "problems": "p q",
        "kl": {"sums": [1.0], "tokens": [4]},
        "facts/accuracy": [1, 0],
    }


def test_a_command_in_the_ledger_names_no_checkout():
    made = LEDGER.command(["jopd.train", "a.py", "--method", f"{FOLDER / 'no_teacher.py'}:It"])
    assert made == "python -m jopd.train a.py --method experiments/no_teacher.py:It"
    lines = "".join(path.read_text(encoding="utf-8") for path in LEDGER.FOLDER.glob("*.jsonl"))
    assert str(FOLDER.parent) not in lines and " /" not in lines
