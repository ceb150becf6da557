"""Runs the cells of a study one after the other, and puts what came out into one table.

    python experiments/grid.py experiments/ar_opd.py                     every cell, every seed
    python experiments/grid.py experiments/ar_opd.py --cells full ar-0.6 --seeds 0
    python experiments/grid.py experiments/ar_opd.py --table             only the table of what is finished

A study is a preset file with `config()`, and with `CELLS`: a cell's name to the flags that make it, `SEEDS`, and `COLUMNS`, the measures
of its table. A cell and seed is one `python -m jopd.train` with a folder of its own under runs/: what is finished is not run again, and
what was killed goes on where it stopped. Cells share their compilations through a cache on the disk.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from scipy.stats import t

from jopd.diagnostics.measures import amount, label, unit


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    study = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    return study


def folder(path: Path, cell: str, seed: int) -> Path:
    return Path("runs") / path.stem / f"{cell}-seed{seed}"


def run(path: Path, cell: str, flags: list[str], seed: int) -> None:
    output = folder(path, cell, seed)
    if (output / "report.json").is_file():
        return
    print(f"--- {cell}, seed {seed}", flush=True)
    command = [sys.executable, "-m", "jopd.train", str(path), *flags, "--seed", str(seed), "--output", str(output)]
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(Path("runs/compiled").absolute()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    }
    start = time.monotonic()
    subprocess.run(command, check=True, env={**os.environ, **cache})
    print(f"--- {cell}, seed {seed}: {time.monotonic() - start:.0f} s", flush=True)


def measures(path: Path, cell: str, seed: int) -> dict[str, float]:
    """What a finished run measured at its end, and what it took."""
    report = json.loads((folder(path, cell, seed) / "report.json").read_text())
    found = {name: when["after"]["value"] for name, when in report["results"].items() if "after" in when}
    return found | {"seconds": report["run"]["seconds"], "tokens": report["resource"]["tokens_generated"]}


def over_seeds(name: str, values: list[float]) -> str:
    """The mean and, for two and more seeds, the half-width of its 95 % interval by Student's t."""
    text = amount(name, statistics.fmean(values))
    if len(values) < 2:
        return text
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{text} ± {amount(name, half)}"


def table(path: Path, study) -> str:
    """Markdown: a row a cell, a column a measure, over the seeds that are finished."""
    title = lambda name: f"{label(name)} ({unit(name)})" if unit(name) else label(name)
    lines = [["", *map(title, study.COLUMNS), "seeds"], ["---"] * (len(study.COLUMNS) + 2)]
    for cell in study.CELLS:
        done = [seed for seed in study.SEEDS if (folder(path, cell, seed) / "report.json").is_file()]
        found = [measures(path, cell, seed) for seed in done]
        show = lambda name: over_seeds(name, [one[name] for one in found]) if found and name in found[0] else ""  # noqa: B023
        lines.append([cell, *map(show, study.COLUMNS), ", ".join(map(str, done)) or "not run"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--cells", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--table", action="store_true", help="run nothing")
    settings = parser.parse_args()
    study = load(settings.study)
    if unknown := set(settings.cells or ()) - set(study.CELLS):
        parser.error(f"no such cells: {', '.join(sorted(unknown))}; there are {', '.join(study.CELLS)}")
    if not settings.table:
        # All cells of a seed before the next seed, so that an interrupted study can be compared.
        for seed in settings.seeds or study.SEEDS:
            for cell in settings.cells or study.CELLS:
                run(settings.study, cell, study.CELLS[cell], seed)
    print(table(settings.study, study))


if __name__ == "__main__":
    main()
