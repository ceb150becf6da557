"""The end of a run: the student as a Hugging Face folder, its adapters as PEFT's, the pictures, and
the report, which is written last and marks a run as finished.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jopd import config as configs
from jopd.diagnostics import plots, report, speed, token_plots
from jopd.diagnostics.findings import comparison
from jopd.diagnostics.style import Shown, drawn
from jopd.diagnostics.tokens import Diagnostics
from jopd.models.files import one_line
from jopd.page.document import document, write
from jopd.page.records import read_run
from jopd.training import facts, logs, processes
from jopd.training.console import results_table, say
from jopd.training.home import Disk
from jopd.training.setup import Run
from jopd.training.state import TrainState
from jopd.training.students import write_cards, write_student
from jopd.training.worker import Worker


def finished(home: Disk, steps: int) -> bool:
    """Whether the run that is there has come to its end, after so many steps."""
    path = home.folder / "report.json"
    return (
        path.is_file() and json.loads(path.read_text(encoding="utf-8"))["config"]["steps"] == steps
    )


def show_result(home: Disk) -> None:
    say(f"{home} is finished; its result:")
    results_table(comparison(logs.read(home.folder).evaluations))


def finish(worker: Worker, state: TrainState) -> None:
    """Writes what is left when the last step is done, and prints the result. What is spread over
    several processes is gathered by all of them, and written by the first.
    """
    run, folder = worker.run, worker.run.home.folder
    if processes.first():
        for pattern in (".student-*", ".adapter-*"):  # of a kill while one of them was written
            for leftover in folder.glob(pattern):
                shutil.rmtree(leftover)
    write_student(run, state, folder / "student", folder / "adapter")
    pictured = worker.look(run.config.steps, state)
    processes.decided(_write_down, run, pictured)


def _write_down(run: Run, pictured: dict[str, np.ndarray]) -> None:
    folder = run.home.folder
    records = logs.read(folder)
    draw(records, pictured, folder / "plots", shown(str(run.home), run.name, run.config))
    write_cards(run, records.evaluations, folder / "student", folder / "adapter")
    collected = report.collected(
        config=configs.to_dict(run.config),
        facts=facts.of(run, records),
        variables=run.program.method.variables()._asdict(),
        evaluations=records.evaluations,
    )
    picture_page(run, collected)
    report.write(folder, collected, records.evaluations)
    run.home.push()
    results_table(comparison(records.evaluations))
    say(speed.sentence(records.training, records.evaluations))
    say(f"everything is in {run.home}; look at its report.html, and try  {run.home.trial}")


def picture_page(run: Run, collected: Mapping[str, Any]) -> None:
    """Writes `report.html`, without which a run has ended all the same."""
    folder = run.home.folder
    try:
        write(folder / "report.html", document([read_run(folder, str(run.home), collected)]))
    except Exception as error:
        say(f"warning: report.html was not written ({one_line(error)}): python -m jopd.show again")


def shown(home: str, preset: str, config: configs.Config) -> Shown:
    """What the pictures say of a run: its folder's name, with preset, method and seed where that
    doesn't tell them, and how completions are drawn.
    """
    folder = home.rstrip("/").rpartition("/")[2]
    usual = f"{preset}-{config.method.name}-seed{config.seed}"
    return Shown(
        folder if folder.startswith(usual) else f"{folder} ({usual})",
        batches=drawn(config.rollout.sampling.temperature),
        answers=drawn(config.evaluation.sampling.temperature),
        k=Diagnostics.k,
    )


def draw(
    records: logs.Records, pictured: dict[str, np.ndarray], folder: Path, shown: Shown
) -> None:
    """The curves of every run, and the pictures of what only some methods have."""
    evaluations = records.evaluations
    plots.learning_curve(records.training, evaluations, folder / "learning_curve.png", shown)
    plots.kl_by_position(evaluations, folder / "kl_by_position.png", shown)
    plots.overlap_by_position(evaluations, folder / "overlap_by_position.png", shown)
    first, last = evaluations[0], evaluations[-1]
    ends = {"before": first, f"after {last['step']:,} steps": last}
    if all("accuracy_by_length" in line for line in ends.values()):
        buckets = {when: line["accuracy_by_length"] for when, line in ends.items()}
        plots.accuracy_by_length(buckets, folder / "accuracy_by_length.png", shown)
    if "evidence" in pictured:
        let_through = pictured["kept"] > 0
        path = folder / "evidence.png"
        token_plots.evidence_histogram(pictured["evidence"], let_through, path, shown)
    if "transport" in pictured:
        token_plots.transport_against_loss(
            pictured["divergence"],
            pictured["transport"],
            folder / "transport_against_loss.png",
            shown,
            threshold=float(pictured["threshold"]),
        )
