"""What a run writes down as it goes: three files of JSON lines, and the same numbers for those who
follow it (`jopd.training.trackers`).

    metrics.jsonl      one object a training step:
                       {"step": 7, "loss": 0.41, ..., "seconds": {"rollout": 1.2, ...},
                       "speed": {"tokens_per_second": 830.0, ...}}
    evaluations.jsonl  one object an evaluation:
                       {"step": 50, "accuracy": {"value": 0.6, "low": ...}, ..., "seconds": 4.1}
    samples.jsonl      some of the student's answers at each evaluation, see `training.samples`:
                       {"step": 50, "prompt": ..., ...}

A run that was killed goes on from its last checkpoint, so its files are first cut back to that
step: what is then appended makes them the files of a run that was never stopped, but for "seconds"
(`jopd.training.laps`) and "speed" (`jopd.training.speed`), which a clock measures. Whoever writes a
checkpoint calls `flush` before it.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jopd.diagnostics.measures import measures, plain
from jopd.training.trackers import Tracker

METRICS, EVALUATIONS, SAMPLES = "metrics.jsonl", "evaluations.jsonl", "samples.jsonl"

Lines = list[dict[str, Any]]


class BadRecord(ValueError):
    """A file of a run holds what a run does not write."""


class Records(NamedTuple):
    """A run's files as they were read, in order of the steps."""

    training: Lines
    evaluations: Lines
    samples: Lines


def loggable(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """A step's scalars as numbers, and its diagnostics as they are; arrays by row are left out."""
    scalars = {
        name: float(x) for name, x in metrics.items() if np.ndim(x) == 0 and name != "diagnostics"
    }
    return scalars | {name: metrics[name] for name in ("diagnostics",) if name in metrics}


def read(folder: Path) -> Records:
    """The records of a run, finished or not; a file that is not there yet is empty.

    Raises:
      BadRecord: a line, other than a torn last one, is not a JSON object with a step.
    """
    return Records(*(_read(folder / name) for name in (METRICS, EVALUATIONS, SAMPLES)))


class RunLog:
    """The three files and the trackers of one run; one process of a run owns it."""

    def __init__(
        self,
        folder: Path,
        *,
        restored_step: int = 0,
        start: Callable[[], Sequence[Tracker]] = lambda: (),
    ):
        """Goes on after `restored_step`: cuts away what an earlier attempt wrote later than that,
        and all of it where nothing was restored: data or models may have changed since.

        Args:
          restored_step: 0 where nothing was.
          start: the trackers, once the files are cut.

        Raises:
          BadRecord: a line of the files is not what this class writes.
        """
        folder.mkdir(parents=True, exist_ok=True)
        of_before = lambda line: restored_step > 0 and line["step"] <= restored_step
        _cut(folder / METRICS, of_before)
        evaluations = _cut(folder / EVALUATIONS, of_before)
        # An evaluation counts once its own line is written, which is after its samples.
        self._evaluated = {line["step"] for line in evaluations}
        _cut(folder / SAMPLES, lambda line: line["step"] in self._evaluated)
        # Line by line to the operating system, so a killed process loses no line; `flush` is
        # against a machine that stops.
        self._files = {
            name: (folder / name).open("a", buffering=1, encoding="utf-8")
            for name in (METRICS, EVALUATIONS, SAMPLES)
        }
        self._trackers = start()

    def training(
        self,
        step: int,
        metrics: Mapping[str, Any],
        seconds: Mapping[str, float],
        speed: Mapping[str, float],
    ) -> None:
        """One training step: its scalars, how long each of its phases took, and how fast it was."""
        self._append(METRICS, {"step": step, **metrics, "seconds": seconds, "speed": speed})
        self._scalars(step, train=metrics, seconds=seconds, speed=speed)

    def evaluation(
        self, step: int, record: Mapping[str, Any], samples: Iterable[Mapping[str, Any]] = ()
    ) -> None:
        """One evaluation (see `jopd.diagnostics.measures`) with a few answers; written once, even
        if redone.
        """
        if step in self._evaluated:
            return
        samples = list(samples)
        for sample in samples:
            self._append(SAMPLES, {"step": step, **sample})
        shown = [{name: x for name, x in it.items() if name != "tokens"} for it in samples]
        for tracker in self._trackers:
            tracker.samples(step, shown)
        self._scalars(step, evaluation=record)
        # Last, and what came before it on the disk: once its line is there, an evaluation is not
        # done again.
        for tracker in self._trackers:
            tracker.flush()
        self._append(EVALUATIONS, {"step": step, **record})
        self._evaluated.add(step)

    def evaluated(self, step: int) -> bool:
        """Whether the evaluation of this step is on file."""
        return step in self._evaluated

    def flush(self) -> None:
        """Everything so far is on the disk when this returns."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        for tracker in self._trackers:
            tracker.flush()

    def close(self, *, failed: bool = False) -> None:
        self.flush()
        for file in self._files.values():
            file.close()
        for tracker in self._trackers:
            tracker.close(failed=failed)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind, *rest) -> None:
        self.close(failed=kind is not None)

    def _append(self, name: str, line: Mapping[str, Any]) -> None:
        self._files[name].write(_dump(line))

    def _scalars(self, step: int, **groups: Mapping[str, Any]) -> None:
        values = {
            f"{group}/{name}": measure.value
            for group, record in groups.items()
            for name, measure in measures(plain(record)).items()
        }
        for tracker in self._trackers:
            tracker.scalars(step, values)


class NoLog:
    """Of a process that writes nothing down: a `RunLog` that does nothing."""

    def __init__(self, folder: Path, *, restored_step: int = 0, start=None):
        pass

    def training(self, step, metrics, seconds, speed) -> None:
        pass

    def evaluation(self, step, record, samples=()) -> None:
        pass

    def flush(self) -> None:
        pass

    def __enter__(self) -> "NoLog":
        return self

    def __exit__(self, *exception) -> None:
        pass


def _dump(line: Mapping[str, Any]) -> str:
    return json.dumps(plain(line), ensure_ascii=False, allow_nan=False) + "\n"


def _read(path: Path) -> Lines:
    texts = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    texts = texts[:-1] if texts and not texts[-1] else texts
    lines = []
    for number, text in enumerate(texts, start=1):
        line = _parse(text)
        if line is not None:
            lines.append(line)
        elif number < len(texts):  # else it is torn: the process was killed while it wrote
            raise BadRecord(
                f"{path} line {number} is not a run's record: restore the file or choose another "
                "output folder"
            )
    return lines


def _parse(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except json.JSONDecodeError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) else None


def _cut(path: Path, keep: Callable[[dict[str, Any]], bool]) -> Lines:
    """Keeps the lines that `keep` says, whole; a kill in between leaves the old file or the new
    one.
    """
    lines = [line for line in _read(path) if keep(line)]
    text = "".join(_dump(line) for line in lines)
    if path.exists() and path.read_text(encoding="utf-8", errors="replace") != text:
        temporary = path.with_name(f".{path.name}.partial")
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    return lines
