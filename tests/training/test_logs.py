import functools
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from jopd.training.logs import EVALUATIONS, METRICS, SAMPLES, RunLog, read
from jopd.training.trackers import TensorBoard

SECONDS = {"rollout": 1.25, "score": 0.5, "update": 0.75}
SPEED = {"tokens_per_second": 400.0, "memory_bytes": 2**31}


def steps(log: RunLog, first: int, last: int) -> None:
    """What a run writes in these steps: numbers that are the same every time, an evaluation at each
    even step.
    """
    for step in range(first, last + 1):
        log.training(step, {"loss": np.float32(1 / step), "kl": 0.1 * step}, SECONDS, SPEED)
        if step % 2 == 0:
            share = {"value": step / 10, "low": 0.0, "high": 1.0, "count": 10}
            log.evaluation(
                step,
                {"accuracy": share, "kl": 0.3},
                [{"prompt": "2 + 2?", "completion": f"it is\n{step}"}],
            )


def with_events(folder: Path, restored_step: int = 0) -> RunLog:
    """A log that TensorBoard follows."""
    board = functools.partial(TensorBoard, folder, restored_step)
    return RunLog(folder, restored_step=restored_step, start=lambda: [board()])


def contents(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in (METRICS, EVALUATIONS, SAMPLES)]


def events(folder: Path) -> list[list[event_pb2.Event]]:
    """Of each event file, oldest first. A record: its length, a checksum, the bytes, a checksum."""
    files = []
    for path in sorted(
        folder.glob("events.out.tfevents*"), key=lambda path: path.stat().st_ctime_ns
    ):
        data, found = path.read_bytes(), []
        while data:
            (length,) = struct.unpack("Q", data[:8])
            found.append(event_pb2.Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
        files.append(found)
    return files


def test_reads_back_what_was_written(tmp_path):
    with RunLog(tmp_path / "run") as log:
        log.training(
            1,
            {"loss": np.float32(0.1), "bins": np.array([1.5, np.nan]), "tokens": 12},
            SECONDS,
            SPEED,
        )
        log.evaluation(
            1,
            {"kl": 0.25, "kl_by_position": [0.5, None]},
            [{"prompt": "naïve ?", "completion": "\n4"}],
        )
    records = read(tmp_path / "run")
    assert records.training == [
        {
            "step": 1,
            "loss": pytest.approx(0.1),
            "bins": [1.5, None],
            "tokens": 12,
            "seconds": SECONDS,
            "speed": SPEED,
        }
    ]
    assert np.float32(records.training[0]["loss"]) == np.float32(
        0.1
    )  # nine digits give every float32 back
    assert records.evaluations == [{"step": 1, "kl": 0.25, "kl_by_position": [0.5, None]}]
    assert records.samples == [{"step": 1, "prompt": "naïve ?", "completion": "\n4"}]


def test_a_folder_without_files_reads_as_empty(tmp_path):
    assert read(tmp_path) == ([], [], [])


def test_a_resumed_run_leaves_the_files_of_one_that_was_never_stopped(tmp_path):
    with RunLog(tmp_path / "whole") as log:
        steps(log, 1, 8)
    killed = RunLog(tmp_path / "killed")
    steps(
        killed, 1, 5
    )  # no flush, no close: every line has reached the operating system all the same
    with (tmp_path / "killed" / METRICS).open("a") as file:
        file.write('{"step": 6, "lo')
    with RunLog(tmp_path / "killed", restored_step=3) as log:
        assert log.evaluated(2) and not log.evaluated(4)
        steps(log, 4, 8)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    killed.close()


def test_a_torn_last_line_is_dropped_even_where_nothing_else_is_cut(tmp_path):
    with RunLog(tmp_path) as log:
        steps(log, 1, 2)
    before = contents(tmp_path)
    for name in (METRICS, EVALUATIONS, SAMPLES):
        with (tmp_path / name).open("ab") as file:
            file.write('{"step": 2, "text": "é'.encode()[:-1])  # inside a character
    RunLog(tmp_path, restored_step=2).close()
    assert contents(tmp_path) == before


def test_samples_whose_evaluation_was_not_finished_are_dropped(tmp_path):
    with RunLog(tmp_path) as log:
        steps(log, 1, 2)
    with (tmp_path / SAMPLES).open("a") as file:
        file.write(json.dumps({"step": 3, "prompt": "half written"}) + "\n")
    with RunLog(tmp_path, restored_step=3) as log:
        log.evaluation(3, {"kl": 0.1}, [{"prompt": "whole"}])
    assert [line["prompt"] for line in read(tmp_path).samples] == ["2 + 2?", "whole"]


def test_an_evaluation_that_is_redone_is_written_once(tmp_path):
    with RunLog(tmp_path) as log:
        steps(log, 1, 2)
    before = contents(tmp_path)
    with RunLog(tmp_path, restored_step=2) as log:
        log.evaluation(2, {"kl": 0.3}, [{"prompt": "again"}])
    assert contents(tmp_path) == before


def test_what_was_measured_before_the_first_checkpoint_is_measured_anew(tmp_path):
    with RunLog(tmp_path) as log:
        log.evaluation(0, {"kl": 0.1}, [{"prompt": "of the data as they were"}])
    with RunLog(tmp_path) as log:
        log.evaluation(0, {"kl": 0.9}, [{"prompt": "of the data as they are"}])
    found = read(tmp_path)
    assert [line["kl"] for line in found.evaluations] == [0.9]
    assert [line["prompt"] for line in found.samples] == ["of the data as they are"]


def test_starting_anew_cuts_everything(tmp_path):
    with RunLog(tmp_path) as log:
        steps(log, 1, 3)
    RunLog(tmp_path).close()
    assert read(tmp_path) == ([], [], [])


@pytest.mark.parametrize("bad", ["not json", "[1]", '{"loss": 1}'])
def test_a_bad_line_in_the_middle_is_named(tmp_path, bad):
    (tmp_path / METRICS).write_text(f'{{"step": 1}}\n{bad}\n{{"step": 3}}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl line 2"):
        RunLog(tmp_path, restored_step=3)


def test_a_kill_while_cutting_leaves_the_old_file(tmp_path, monkeypatch):
    with RunLog(tmp_path) as log:
        steps(log, 1, 4)
    before = contents(tmp_path)

    def killed(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        RunLog(tmp_path, restored_step=1)
    assert contents(tmp_path) == before


def test_the_events_of_an_evaluation_are_on_file_before_it_counts_as_done(tmp_path):
    log = with_events(tmp_path)
    steps(log, 1, 2)
    (file,) = events(tmp_path)  # without a flush of ours
    tags = {value.tag for event in file for value in event.summary.value}
    assert {"train/loss", "evaluation/accuracy", "evaluation/kl", "samples/0/text_summary"} <= tags
    log.close()


def test_a_full_disk_is_an_error_and_not_a_wait(tmp_path, monkeypatch):
    log = with_events(tmp_path)
    with (
        Path("/dev/full").open("wb", buffering=0) as full,
        pytest.raises(OSError, match="No space left"),
    ):
        monkeypatch.setattr(log._trackers[0]._events._py_recordio_writer, "_writer", full)
        steps(log, 1, 100)


def test_flush_reaches_the_disk(tmp_path, monkeypatch):
    with with_events(tmp_path) as log:
        steps(log, 1, 2)
        synced, fsync = [], os.fsync
        monkeypatch.setattr(
            os,
            "fsync",
            lambda descriptor: (synced.append(os.fstat(descriptor).st_ino), fsync(descriptor)),
        )
        log.flush()
        files = {(tmp_path / name).stat().st_ino for name in (METRICS, EVALUATIONS, SAMPLES)}
        assert files < set(synced)  # and the event file
        monkeypatch.undo()


def test_tensorboard_gets_the_scalars_and_forgets_what_was_cut(tmp_path):
    with with_events(tmp_path) as log:
        steps(log, 1, 4)
    with with_events(tmp_path, restored_step=2) as log:
        log.training(3, {"loss": float("nan"), "kl": 0.5}, SECONDS, SPEED)
    first, second = events(tmp_path)
    tags = {(value.tag, event.step) for event in first for value in event.summary.value}
    assert {
        ("train/loss", 4),
        ("seconds/rollout", 4),
        ("speed/memory_bytes", 4),
        ("evaluation/accuracy", 4),
        ("evaluation/kl", 2),
    } <= tags
    assert any(tag.startswith("samples/0") for tag, _ in tags)
    starts = [event.step for event in second if event.HasField("session_log")]
    assert starts == [3]  # purge_step: TensorBoard drops older files' events from here on
    assert [event.step for event in first if event.HasField("session_log")] == [0]
    assert {value.tag for event in second for value in event.summary.value} == {
        "train/kl",
        *(f"seconds/{n}" for n in SECONDS),
        *(f"speed/{n}" for n in SPEED),
    }
