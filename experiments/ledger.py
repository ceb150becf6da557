"""What has been run: `experiments/ledger/STUDY.jsonl`, a line a finished run, in the repository.

    {"cell": "opd", "rate": "5e-4", "seed": 0, "settings": "3fa2c1d09b7e", "judged": {...}, ...}

Tables are made of these lines alone, so that a page can be made again when the runs are gone, and
a quiet hour of a machine adds lines and nothing else. Lines are only added: of several for one run
the last counts, and of those whose settings the study has since changed none.
"""

import hashlib
import json
import os
import platform
import re
import shlex
import subprocess
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jopd import config as configs
from jopd.config import parse
from jopd.diagnostics import report
from jopd.diagnostics.measures import measures, plain

FOLDER = Path(__file__).parent / "ledger"
BEFORE = "before training"
HEADROOM = "headroom"  # in the place of a learning rate

_WRITING = threading.Lock()
_PARSING = threading.Lock()  # Python 3.11 reads no source in two threads at once


class Run(NamedTuple):
    """Which run of a study: a cell, at a learning rate ("" where the study has but one), with a
    seed.
    """

    cell: str
    rate: str
    seed: int


class Entry(NamedTuple):
    """A finished run.

    Attributes:
      settings: digest of everything that makes its numbers.
      command: which makes it again.
      chosen: the judge's record on the problems that learning rates are chosen on, if it was
        asked; under "asked" a digest of what was asked.
      judged: the same on the test's problems.
      measured: what the run itself measured at its ends, by the names that COLUMNS may have.
      along: its own evaluations, of the measures that the study draws or tells: by measure,
        `{"step", "value", "count"}` each.
      seconds: that it took.
    """

    cell: str
    rate: str
    seed: int
    settings: str
    command: str
    chosen: dict[str, Any] | None
    judged: dict[str, Any] | None
    measured: dict[str, float]
    along: dict[str, list[dict[str, float]]]
    commit: str
    machine: str
    versions: dict[str, str]
    seconds: float

    @property
    def run(self) -> Run:
        return Run(self.cell, self.rate, self.seed)


def file_of(study: Path) -> Path:
    return FOLDER / f"{study.stem}.jsonl"


def add(study: Path, entry: Entry) -> None:
    """One more line, on the disk when this returns."""
    file = file_of(study)
    file.parent.mkdir(exist_ok=True)
    line = json.dumps(plain(entry._asdict()), ensure_ascii=False) + "\n"
    with _WRITING, file.open("a", encoding="utf-8") as out:
        out.write(line)
        out.flush()
        os.fsync(out.fileno())


def entries(study: Path) -> dict[Run, Entry]:
    """The newest line of every run."""
    file = file_of(study)
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    found = (Entry(**json.loads(line)) for line in lines if line.strip())
    return {entry.run: entry for entry in found}


def settings_of(study: Path, flags: Sequence[str]) -> str:
    """A digest of the settings that make a run's numbers, but for its seed, which a `Run` tells,
    and of the files of the repository that they name. What `prepare` made is not in it.
    """
    with _PARSING:
        _, config = parse([str(study), *flags])
    return digest(configs.same_numbers(configs.to_dict(config), config) | {"seed": 0})


def digest(settings: Any) -> str:
    """Of settings or flags, and of what is in the files of the studies that they name; the same
    wherever the repository lies.
    """
    here = str(FOLDER.parent.resolve())
    text = json.dumps(settings, sort_keys=True)
    named = sorted({*re.findall(rf"{re.escape(here)}/[^:\"]+", text)})
    files = [Path(name).read_bytes() for name in named if Path(name).is_file()]
    parts = [text.replace(here, "").encode(), *files]
    return hashlib.blake2b(b"\0".join(parts), digest_size=6).hexdigest()


def kept(
    record: Mapping[str, Any], by_problem: Collection[str], asked: Sequence[str] = ()
) -> dict[str, Any]:
    """Of a judge's record the measures, accuracy by length, by some measures how each problem came
    out, and a digest of the flags that it was asked with.
    """
    values = {name: measure.value for name, measure in measures(record).items()}
    names = {"problems", *by_problem}
    each = {name: it for name, it in record.get("by_problem", {}).items() if name in names}
    lengths = {"accuracy_by_length": record.get("accuracy_by_length", [])}
    return {"measures": values, "by_problem": each, **lengths, "asked": digest([*asked])}


def joined(record: Mapping[str, Any], name: str, more: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of two judges' records, the second one's under its name."""
    under = lambda values: {f"{name}/{key}": value for key, value in values.items()}
    problems = " ".join(it["by_problem"].get("problems", "") for it in (record, more))
    by_problem = record["by_problem"] | under(more["by_problem"]) | {"problems": problems}
    del by_problem[f"{name}/problems"]
    return {
        **record,
        "measures": record["measures"] | under(more["measures"]),
        "by_problem": by_problem,
        "asked": f"{record['asked']} {more['asked']}",
    }


def command(arguments: Sequence[str]) -> str:
    """What makes a run again, from the root of whoever's checkout."""
    root = f"{FOLDER.parent.parent.resolve()}/"
    return shlex.join(["python", "-m", *(it.replace(root, "") for it in arguments)])


def machine() -> str:
    """The kind of machine, and how many cores this process has."""
    names = [
        line.partition(":")[2].strip()
        for line in _lines(Path("/proc/cpuinfo"))
        if line.startswith("model name")
    ]
    name = names[0] if names else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0))
    return f"{name}, {cores} {'core' if cores == 1 else 'cores'}"


def commit() -> str:
    """Of the code, with a + where it has been changed since."""
    git = lambda *what: subprocess.run(
        ["git", *what], cwd=FOLDER.parent, capture_output=True, text=True, check=True
    ).stdout.strip()
    return git("rev-parse", "--short", "HEAD") + "+" * bool(git("status", "--porcelain", "jopd"))


def versions() -> dict[str, str]:
    return report.versions()


def _lines(file: Path) -> Iterable[str]:
    return file.read_text(encoding="utf-8").splitlines() if file.is_file() else ()
