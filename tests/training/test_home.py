"""Where a run lives is its own, on a disk and in a bucket, and whatever ends it, what is there goes
on.
"""

import json
import signal
import time

import filelock
import fsspec
import jax
import pytest
from orbax.checkpoint.utils import checkpoint_steps

from jopd import train
from jopd.training import home, loop
from jopd.training.home import Bucket, Disk
from jopd.training.logs import EVALUATIONS, METRICS, SAMPLES
from tests.training.bucket import BUCKET, serving
from tests.training.several import Processes
from tests.training.tiny import arguments


@pytest.fixture(scope="module")
def environment():
    with serving() as variables:
        yield variables


@pytest.fixture
def address(environment, monkeypatch, tmp_path):
    """Of a run in the bucket."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(home, "SIGN_SECONDS", 0.2)
    monkeypatch.setattr(home, "PATIENCE_SECONDS", 1.0)
    return f"gs://{BUCKET}/{tmp_path.name}/run"


@pytest.fixture
def of_tests(address):
    """What lies under a name in the bucket."""
    files = fsspec.filesystem("gs", use_listings_cache=False, skip_instance_cache=True)
    return lambda name: files.find(f"{address}/{name}")


def text(address: str, name: str) -> str:
    return Bucket(address).objects.cat_file(f"{address}/{name}").decode()


def test_a_folder_that_another_process_is_at_is_refused(tiny, tmp_path, refused):
    own = Disk(tmp_path / "run")
    own.claim()
    error = refused(arguments(tiny["student"], tiny["teacher"], tmp_path / "run"))
    assert (
        f"output={tmp_path / 'run'} is in use by another process" in error and "--output" in error
    )
    own.leave()
    own.claim()
    own.leave()
    assert not (tmp_path / "run").exists()


def test_where_there_are_no_locks_a_run_is_warned(tmp_path, monkeypatch):
    def none(lock):
        raise NotImplementedError

    monkeypatch.setattr(filelock.FileLock, "_acquire", none)
    own = Disk(tmp_path / "run")
    with pytest.warns(
        UserWarning, match=f"output={tmp_path / 'run'} lies on a file system without locks"
    ):
        own.claim()
    own.leave()


def test_a_bucket_has_one_owner_until_it_leaves(address):
    own, other = Bucket(address), Bucket(address)
    own.claim()
    (own.folder / METRICS).write_text("own")
    with pytest.raises(ValueError, match=f"output={address} is in use by another run, on "):
        other.claim()
    own.leave()
    assert not own.folder.exists()
    other.claim()
    assert (other.folder / METRICS).read_text() == "own"
    other.leave()


def test_a_dead_owner_is_replaced_and_ends_if_it_was_asleep(address):
    asleep, other = Bucket(address), Bucket(address)
    asleep.claim()
    asleep._left.set()  # it gives no more signs
    other.claim()
    with pytest.raises(home.Taken, match="taken over by another run"):
        asleep.push()
    (other.folder / METRICS).write_text("other")
    other.push()
    asleep.leave()
    assert text(address, METRICS) == "other"
    other.leave()


def test_of_two_that_wait_for_a_dead_owner_one_has_it(address):
    dead, *others = (Bucket(address) for _ in range(3))
    dead.claim()
    dead._left.set()
    heard = []

    def claim(one: Bucket):
        try:
            one.claim()
        except ValueError as error:
            heard.append(str(error))

    threads = [home.threading.Thread(target=claim, args=[one]) for one in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(heard) == 1 and "in use by another run" in heard[0]
    for one in others:
        one.leave()


def test_what_is_refused_before_anything_is_read(tiny, address, refused, monkeypatch):
    run = lambda output: refused(arguments(tiny["student"], tiny["teacher"], output))
    assert "output=s3://bucket/run must be a folder or gs://BUCKET/RUN" in run("s3://bucket/run")
    Bucket(address).objects.pipe_file(f"{address}/thesis.txt", b"")
    assert f"output={address} holds files that are not of a run" in run(address)
    assert "output=gs://no-such-bucket/run can't be used" in run("gs://no-such-bucket/run")

    def none(*_, **__):
        raise ImportError

    monkeypatch.setattr(home.fsspec, "filesystem", none)
    assert f"output={address} needs gcsfs: pip install 'jopd[gcs]'" in run(address)


def test_what_others_write_meanwhile_is_seen(address):
    own = Bucket(address)
    own.objects.pipe_file(f"{address}/", b"")  # a folder that was made by hand
    assert own.names() == []
    for step in (2, 4):
        own.objects.pipe_file(f"{address}/checkpoints/{step}/commit_success.txt", b"")
        assert step in checkpoint_steps(own.checkpoints)
    assert own.names() == ["checkpoints"]
    own.leave()


def test_a_student_that_lies_in_a_bucket_alone_is_brought(address):
    there = Bucket(address)
    for name in ("config.json", "deeper/tokenizer.json"):
        there.objects.pipe_file(f"{address}/student/{name}", name.encode())
    here = there.student()
    assert here == there.folder / "student"
    files = {str(path.relative_to(here)) for path in here.rglob("*") if path.is_file()}
    assert files == {"config.json", "deeper/tokenizer.json"}
    assert (here / "config.json").read_text() == "config.json"
    there.leave()
    assert there.names() == ["student"]


def test_a_bucket_that_is_away_for_a_moment_is_no_refusal(address, monkeypatch):
    def away(*_, **__):
        raise ConnectionError("connection reset by peer")

    own = Bucket(address)
    own.claim()
    monkeypatch.setattr(own.objects, "ls", away)
    with pytest.raises(SystemExit, match="can't be reached .*connection reset by peer"):
        own.fetch()
    own.leave()
    time.sleep(3 * home.SIGN_SECONDS)
    assert own._owner() is None


@pytest.mark.usefixtures("quick_compilation")
def test_a_run_in_a_bucket_is_one_on_a_disk(tiny, address, tmp_path, monkeypatch, of_tests):
    """Stopped after a step that was not saved, and once more with its last checkpoint damaged."""

    def run(output):
        with jax.numpy_dtype_promotion("standard"):  # optax lets types mix
            train.main(arguments(tiny["student"], tiny["teacher"], output))

    run(tmp_path / "run")

    def stopped_at(last: int):
        def step(worker, step, state, meanwhile):
            if step == last:
                meanwhile()
                raise KeyboardInterrupt
            return original(worker, step, state, meanwhile)

        original = loop.Worker.step
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
            patch.setattr(loop.Worker, "step", step)
            run(address)
        assert f"What was saved before is in {address}/checkpoints" in str(stop.value)

    stopped_at(4)
    assert len(text(address, METRICS).splitlines()) == 3
    stopped_at(6)
    files = Bucket(address).objects
    files.rm(f"{address}/checkpoints/4/state/manifest.ocdbt")
    run(address)
    assert of_tests("damaged-checkpoints") and of_tests("student") and of_tests("plots")
    assert not of_tests(".owner")
    for name in (METRICS, EVALUATIONS, SAMPLES):
        lines = map(json.loads, text(address, name).splitlines())
        wanted = map(json.loads, (tmp_path / "run" / name).read_text().splitlines())
        without = lambda line: {
            key: x for key, x in line.items() if key not in ("seconds", "speed")
        }
        assert [*map(without, lines)] == [*map(without, wanted)]
    student = (tmp_path / "run" / "student" / "model.safetensors").read_bytes()
    assert files.cat_file(f"{address}/student/model.safetensors") == student
    # Finished: nothing is run again.
    monkeypatch.setattr(loop, "train", None)
    run(address)


@pytest.mark.slow
def test_two_processes_killed_in_a_bucket_go_on_there(tiny, environment, address, tmp_path):
    """They share no disk; the second start waits for the dead owner."""
    changes = {"steps": 20, "checkpoint__every": 1, "evaluation__every": 0}
    run = lambda output: [
        *("-m", "jopd.train"),
        *arguments(tiny["student"], tiny["teacher"], output, **changes),
    ]
    start = lambda command, folder: Processes([command] * 2, tmp_path / folder, devices=4)
    statuses, said = start(run(tmp_path / "run"), "whole").wait()
    assert statuses == [0, 0], said
    killed = start(run(address), "killed")
    files = Bucket(address).objects
    while not files.exists(f"{address}/checkpoints/2/commit_success.txt"):
        assert killed.running[0].poll() is None, killed.outputs[0].read_text()
        time.sleep(0.1)
    for process in killed.running:
        process.send_signal(signal.SIGKILL)
    killed.wait()
    statuses, said = start(run(address), "again").wait()
    assert statuses == [0, 0] and "resuming after step" in said[0], said
    assert "is held by another run" in said[0]
    of = lambda lines: [json.loads(line)["loss"] for line in lines.splitlines()]
    assert of(text(address, METRICS)) == of((tmp_path / "run" / METRICS).read_text())
