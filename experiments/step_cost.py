"""What a training step of each method costs beside one of plain OPD, and what the diagnostics cost:
the steps alternate in one process.

    python experiments/step_cost.py

The student, teacher, problems and rows are the default job's; what a method adds are views to
score, a second vocabulary pass, windows to write. Every variant first runs until all its shapes are
compiled; then ROUNDS rounds take one step of each in turn. The ratios compare steps of one round,
so that a machine that slows down slows all of them.
"""

import statistics

import jax
from study_tables import markdown

from jopd.config import Config, parse
from jopd.training import setup
from jopd.training.worker import Worker

WARM, ROUNDS = 6, 15
SAME = ("--teacher.model", "jopd:baby-teacher")
VARIANTS = {
    "opd": (),
    "opd, diagnostics at every step": ("--watch", "1"),
    "opd_pg": ("--method", "opd_pg"),
    "gae_opd": ("--method", "gae_opd"),
    "cr_opd": ("--method", "cr_opd"),
    "opsd": ("--method", "opsd", *SAME),
    "ar_opd": ("--method", "ar_opd", "--method.teacher-update", "frozen", *SAME),
    "edge_opd": ("--method", "edge_opd"),
    "topd, 2 windows of 16 tokens": ("--method", "topd", "--method.window-tokens", "16"),
}
PHASES = ("rollout", "score", "windows", "update")


def config(flags: tuple[str, ...]) -> Config:
    return parse(["default", "--watch", "0", "--output", "runs/step-cost", *flags])[1]


def main() -> None:
    steppers = {}
    for name, flags in VARIANTS.items():
        run = setup.prepare(name, config(flags))
        steppers[name] = [Worker(run), run.state]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for step in range(1, WARM + ROUNDS + 1):
        for name, stepper in steppers.items():
            worker, state = stepper
            # The same batch in every round: one set of lengths, nothing to compile once it is warm.
            with jax.set_mesh(worker.run.mesh):
                stepped = worker.step(1, state)
                stepper[1], seconds = stepped.state, stepped.measured().seconds
            if step > WARM:
                found[name].append(seconds)
    totals = {name: [sum(seconds.values()) for seconds in runs] for name, runs in found.items()}
    rows = [["", *(f"{phase} (s)" for phase in PHASES), "step (s)", "beside opd"]]
    for name, runs in found.items():
        medians = [statistics.median(seconds.get(phase, 0) for seconds in runs) for phase in PHASES]
        ratio = statistics.median(
            mine / opd for mine, opd in zip(totals[name], totals["opd"], strict=True)
        )
        rows.append(
            [
                name,
                *(f"{value:.2f}" if value else "" for value in medians),
                f"{statistics.median(totals[name]):.2f}",
                f"{ratio:.2f} ×",
            ]
        )
    print(markdown(rows))


if __name__ == "__main__":
    main()
