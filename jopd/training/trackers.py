"""Who follows a run's numbers, beside its own files: TensorBoard, Weights & Biases, trackio.

    --tracking.to tensorboard wandb trackio

A run that goes on is the same run to each of them: what a tracker knows it by is kept in the run's
folder. Steps that are made again are sent again, with the same numbers but for what clocks say; so
that a tracker may hear of them, its own count of steps isn't used, and every number comes with the
step as a number beside it.

What leaves this machine is for the user to say: wandb writes to files unless somebody is logged in
or WANDB_MODE says otherwise, trackio to its own folder unless TRACKIO_SPACE_ID names a space.
"""

import json
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

from jopd.config import Config, Tracking, to_dict
from jopd.data.answers import require
from jopd.models.files import one_line
from jopd.training.console import say
from jopd.training.home import Disk

# In the run's folder: by what each tracker knows the run.
KNOWN_AS = "trackers.json"
# How long the end of a run waits for a network that is away; the rest stays in wandb's files.
WANDB_PATIENCE_SECONDS = 600

Sample = Mapping[str, Any]


@runtime_checkable
class Tracker(Protocol):
    """Hears of a run, step by step; after a resume some steps come again."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step, by names such as "train/loss"."""
        ...

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        """A few answers of the student at an evaluation, of the same fields each."""
        ...

    def flush(self) -> None:
        """What it writes to this run's folder is on the disk when this returns."""
        ...

    def close(self, *, failed: bool) -> None:
        """The run has ended, well or with an error."""
        ...


class TensorBoard:
    """Event files in the run's folder."""

    def __init__(self, folder: Path, restored_step: int):
        # The suffix keeps files of the same second apart. Not tensorboardX's usual writer, whose
        # thread holds events back, and for ever once the disk was full.
        self._events = EventsWriter(str(folder / "events"), f".from{restored_step}")
        # TensorBoard drops the events from this step on that older files hold: all, where nothing
        # was restored.
        self._event(
            restored_step + 1 if restored_step else 0,
            session_log=SessionLog(status=SessionLog.START),
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._event(step, summary=summary.scalar(name, value))

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        for index, sample in enumerate(samples):
            text = "\n\n".join(f"**{name}**\n\n{value}" for name, value in sample.items())
            self._event(step, summary=summary.text(f"samples/{index}", text))

    def flush(self) -> None:
        self._events.flush()

    def close(self, *, failed: bool) -> None:
        self._events.close()

    def _event(self, step: int, **what: Any) -> None:
        self._events.write_event(Event(wall_time=time.time(), step=step, **what))


class WandB:
    """A run of Weights & Biases; what is written offline, `wandb sync` uploads."""

    def __init__(self, run_id: str, name: str, config: Config):
        import wandb  # pyright: ignore[reportMissingImports]

        self._table = wandb.Table
        self._run = wandb.init(
            project=config.tracking.project,
            name=name,
            config=to_dict(config),
            id=run_id,
            resume="allow",
            mode=None if _may_upload(wandb) else "offline",
            settings=wandb.Settings(finish_timeout=WANDB_PATIENCE_SECONDS),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step})

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        if samples:
            table = self._table(**_table_of(samples))
            self._run.log({"samples": table, "step": step})

    def flush(self) -> None:
        pass

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class Trackio:
    """A run of trackio, which knows runs by their names."""

    def __init__(self, name: str, config: Config, *, again: bool):
        import trackio  # pyright: ignore[reportMissingImports]

        self._table = trackio.Table
        self._run = trackio.init(
            project=config.tracking.project,
            name=name,
            config=to_dict(config),
            # Of another run's name it makes a second run.
            resume="allow" if again else "never",
            embed=False,
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        if samples:
            table = self._table(**_table_of(samples))
            self._run.log({"samples": table}, step=step)

    def flush(self) -> None:
        pass

    def close(self, *, failed: bool) -> None:
        self._run.finish()


class Forgiving:
    """A tracker without which a run goes on: what fails in it is said once."""

    def __init__(self, what: str, start: Callable[[], Tracker]):
        self._what, self._said = what, False
        self._tracker: Tracker | None = self._tried(start)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._tell(lambda tracker: tracker.scalars(step, values))

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        self._tell(lambda tracker: tracker.samples(step, samples))

    def flush(self) -> None:
        self._tell(lambda tracker: tracker.flush())

    def close(self, *, failed: bool) -> None:
        self._tell(lambda tracker: tracker.close(failed=failed))

    def _tell(self, do: Callable[[Tracker], None]) -> None:
        if (tracker := self._tracker) is not None:
            self._tried(lambda: do(tracker))

    def _tried(self, do: Callable[[], Any]) -> Any:
        try:
            return do()
        except Exception as error:
            if not self._said:
                say(
                    f"warning: {self._what} misses numbers of this run ({one_line(error)}); the "
                    "run goes on, and its own files have them all"
                )
            self._said = True


def check_installed(tracking: Tracking) -> None:
    """Raises ValueError where a tracker's package is missing, with the command that installs it."""
    for name in tracking.to:
        if name != "tensorboard":
            require(name, name, f"tracking.to={name}")


def started(config: Config, home: Disk, restored_step: int) -> list[Tracker]:
    """The trackers that a run names; one process of a run has them."""
    folder, name = home.folder, config.tracking.name or Path(str(home)).name

    def wandb() -> Tracker:
        run_id, _ = known_as(folder, "wandb", secrets.token_hex(4))
        return WandB(run_id, name, config)

    def trackio() -> Tracker:
        known, again = known_as(folder, "trackio", name)
        return Trackio(known, config, again=again)

    made = {
        "tensorboard": lambda: TensorBoard(folder, restored_step),
        "wandb": lambda: Forgiving("wandb", wandb),
        "trackio": lambda: Forgiving("trackio", trackio),
    }
    return [made[tracker]() for tracker in dict.fromkeys(config.tracking.to)]


def known_as(folder: Path, tracker: str, new: str) -> tuple[str, bool]:
    """By what a tracker knows this run, and whether it has met it before; `new` if it hasn't."""
    path = folder / KNOWN_AS
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if tracker in known:
        return known[tracker], True
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps({**known, tracker: new}), encoding="utf-8")
    partial.replace(path)
    return new, False


def _may_upload(wandb: Any) -> bool:
    """Whether WANDB_MODE or a login says where numbers go."""
    return bool(os.environ.get("WANDB_MODE")) or wandb.login(prompt=False, verify=False)


def _table_of(samples: Sequence[Sample]) -> dict[str, list]:
    """Columns and rows; what a sample lacks is None."""
    columns = list(dict.fromkeys(name for sample in samples for name in sample))
    return {
        "columns": columns,
        "data": [[sample.get(name) for name in columns] for sample in samples],
    }
