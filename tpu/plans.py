"""Makes `plans.md`: what fits where, and what bounds it. `python tpu/plans.py [ROW ...]`.

Each row is compiled in a process of its own and kept in `plans.json`, so that the table can be made
over several sittings; `--table` writes the page of what is there.
"""

import json
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from jopd.config import parse
from jopd.planning import job, machines

FOLDER = Path(__file__).parent
LENGTHS = "--rollout.max-prompt-tokens 1024 --rollout.max-new-tokens 3072"
COMMON = f"{LENGTHS} --rollout.samples 1 --chunk-tokens 1024"
# Name: student, teacher, topology, further settings; 64 rows a step, twice that on larger slices.
ROWS = {
    "0.6B-v5e-8": ("0.6B", "self", "v5e:2x4", "--prompts 64 --micro-batches 4"),
    "0.6B-from-8B-v5e-8": ("0.6B", "8B", "v5e:2x4", "--prompts 64 --micro-batches 8"),
    "1.7B-v5e-8": ("1.7B", "self", "v5e:2x4", "--prompts 64 --micro-batches 4"),
    "4B-v6e-8": ("4B", "self", "v6e:2x4", "--prompts 64 --micro-batches 4"),
    "8B-v5p-64": ("8B", "self", "v5p:2x4x4", "--prompts 128 --micro-batches 2 --mesh.tensor 2"),
    "8B-v6e-64": ("8B", "self", "v6e:8x8", "--prompts 128 --micro-batches 1 --mesh.tensor 4"),
    "4B-from-32B-v5p-64": (
        *("4B", "32B", "v5p:2x4x4"),
        "--prompts 128 --micro-batches 4 --mesh.tensor 4",
    ),
}
HEADER = (
    *("student", "teacher", "slice", "mesh (data, fsdp, tensor)", "rows", "fits"),
    *("peak, GiB a chip", "in which phase", "largest collective a token, bytes"),
    *("step at least, s", "tokens/s a chip at most", "compiled in, s"),
)


def arguments(row: str) -> list[str]:
    """What follows `python -m jopd.plan`."""
    student, teacher, topology, settings = ROWS[row]
    of = lambda name: name if name == "self" else f"Qwen/Qwen3-{name}"
    models = f"--student.model {of(student)} --teacher.model {of(teacher)}"
    return f"qwen3-0.6b-from-8b {models} {COMMON} {settings} --topology {topology}".split()


def made(row: str) -> dict:
    """The plan of a row; nothing is tried where it does not fit."""
    rest = arguments(row)
    topology = rest.pop(rest.index("--topology") + 1)
    rest.remove("--topology")
    config = parse(rest)[1]
    found = job.of(config, machines.named(topology), advise=False)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=FOLDER, capture_output=True, text=True
    )
    versions = {name: metadata.version(name) for name in ("jax", "libtpu")}
    return found | {"rows": config.rows, "commit": commit.stdout.strip(), **versions}


def line(row: str, found: dict) -> tuple:
    student, teacher, topology, _ = ROWS[row]
    worst = max(found["phases"], key=lambda phase: phase["peak_bytes"])
    loops = [it for phase in found["phases"] for it in phase.get("in_loop", ())]
    return (
        *(student, teacher, topology, ", ".join(map(str, found["mesh"].values())), found["rows"]),
        "yes" if found["fits"] else "no",
        f"{worst['peak_bytes'] / 2**30:.1f} of {found['memory_bytes'] / 2**30:.1f}",
        worst["phase"],
        f"{max((it['bytes'] for it in loops), default=0):,}",
        f"{found['step_seconds_at_least']:.1f}",
        f"{found['tokens_a_second_a_device_at_most']:,.0f}",
        f"{sum(phase['compile_seconds'] for phase in found['phases']):.0f}",
    )


def page(plans: dict[str, dict]) -> str:
    """`plans.md`."""
    lines = [HEADER, ["---"] * len(HEADER)]
    lines += [line(row, plans[row]) for row in ROWS if row in plans]
    table = "\n".join("| " + " | ".join(map(str, each)) + " |" for each in lines)
    stamps = {f"{it['commit']} (jax {it['jax']}, libtpu {it['libtpu']})" for it in plans.values()}
    commands = "\n".join(f"    python -m jopd.plan {' '.join(arguments(row))}" for row in plans)
    return f"""# What fits where

On-policy distillation of Qwen3 shapes, prompts of 1,024 and answers of 3,072 tokens, bfloat16
compute, float32 weights and moments of the student. Compiled ahead of time by libtpu on a CPU;
**nothing was run on a TPU**. Memory is the compiler's; times are bounds from the models' formula
and published rates, with every row at its longest, and no program reaches them.

These are the phases of a step. Of the evaluation that a run begins with the rows say nothing: they
were compiled before plans covered it. Each command below now does, and says what
`--evaluation.batch` fits.

{table}

Commit {", ".join(sorted(stamps))}; compiled on {platform.machine()} with other work beside.
Each row again:

{commands}
"""


def main() -> None:
    path = FOLDER / "plans.json"
    plans = json.loads(path.read_text()) if path.exists() else {}
    if sys.argv[1:2] == ["--row"]:
        print(json.dumps(made(sys.argv[2])))
        return
    for row in [] if "--table" in sys.argv else sys.argv[1:] or ROWS:
        command = [sys.executable, __file__, "--row", row]
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        plans[row] = json.loads(result.stdout.splitlines()[-1])
        path.write_text(json.dumps(plans, indent=1) + "\n")
    (FOLDER / "plans.md").write_text(page(plans))


if __name__ == "__main__":
    main()
