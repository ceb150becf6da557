"""Where a run lives, and that no other run lives there.

    --output FOLDER            `Disk`: on this machine, or on a disk that all hosts share
    --output gs://BUCKET/RUN   `Bucket`: Google Cloud Storage; a folder here is its working copy

What lies in a bucket can't be appended to, renamed or locked. So a run in a bucket writes its logs
here and uploads them whole, before each checkpoint and when it ends, and Orbax writes the
checkpoints straight to the bucket: whatever is killed, the logs there reach at least as far as the
checkpoints. It is owned by an object that is made only where there is none, and that its owner
writes again every few seconds; when that has stopped, as after a kill, another run may take it.
"""

import contextlib
import functools
import json
import re
import secrets
import shutil
import socket
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import filelock
import fsspec
from etils import epath
from fsspec.config import conf as fsspec_settings

from jopd.training import processes
from jopd.training.console import say

LOCK, MARK, OWNER = ".lock", ".processes", ".owner"
# In the order in which it is cleared: without its config.yaml a folder would be no run's.
WRITTEN = (
    *("lengthened.json", "report.md", "report.html", "report.json", "events.out.tfevents.*"),
    *("metrics.jsonl", "evaluations.jsonl", "samples.jsonl", "trackers.json"),
    *("checkpoints", "damaged-checkpoints", "plots", "student", "adapter"),
    "config.yaml",
)
# What a run that goes on reads of what it wrote before.
READ = (
    *("config.yaml", "lengthened.json", "report.json", "trackers.json"),
    *("metrics.jsonl", "evaluations.jsonl", "samples.jsonl"),
)
# Between two signs of an owner, and without one until it is taken to be dead.
SIGN_SECONDS, PATIENCE_SECONDS = 10, 60


class Taken(Exception):
    """Another run has taken this one's place."""


class Refused(ValueError):
    """A place that this run can't have."""


class Disk:
    """A folder."""

    def __init__(self, address: str | Path):
        self.address = str(address)
        self._lock: filelock.BaseFileLock | None = None

    def __str__(self) -> str:
        return self.address

    @functools.cached_property
    def folder(self) -> Path:
        """What a run reads and writes."""
        return Path(self.address)

    @property
    def checkpoints(self) -> epath.Path:
        return epath.Path(self.folder.absolute() / "checkpoints")

    @property
    def trial(self) -> str:
        """The command that asks the student something."""
        return self.on_student("python -m jopd.generate --model {} --prompt '...'")

    def on_student(self, command: str) -> str:
        """What to type for a command on the student's folder, where `{}` stands."""
        return command.format(self.folder / "student")

    def student(self) -> Path:
        """The folder of the student of a run that has ended.

        Raises:
          ValueError: it can't be reached.
        """
        return self.folder / "student"

    def names(self) -> list[str]:
        """What is there."""
        return [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []

    def fetch(self) -> None:
        """Brings what a run reads into `folder`.

        Raises:
          ValueError: it can't be reached.
        """

    def claim(self) -> None:
        """Makes the place of a run, and keeps other runs out of it until `leave`, or until this
        process ends. Of several processes of one run the first holds it for all.

        Raises:
          ValueError: it can't be made or written to, or its checkpoints would not be found again,
            or another run is at it; or the processes of this run don't share it.
        """
        # Orbax looks for what it has written by patterns, in which a bracket is no letter.
        if re.search(r"\[.*\]", whole := str(self.folder.absolute())):
            raise ValueError(
                f"output={self.folder}: its whole path, {whole}, has [ ] in it, and checkpoints "
                "are not found again there: choose another --output"
            )
        if processes.first():
            self._lock = _lock(self.folder)
        if processes.count() > 1:
            _check_shared(self.folder)

    def push(self) -> None:
        """Brings what was written to where it is kept.

        Raises:
          Taken: it is another run's by now.
        """

    def clear(self) -> None:
        """Removes what a run has written, and nothing else."""
        for path in (path for pattern in WRITTEN for path in self.folder.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def leave(self) -> None:
        """Lets others in; a folder that nothing was written to is gone again."""
        if self._lock is None:
            return
        (self.folder / MARK).unlink(missing_ok=True)
        if self.names() == [LOCK]:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.release()


class Bucket(Disk):
    """Objects under a name, `gs://BUCKET/RUN`; of several processes only the first reads and writes
    them, but for checkpoints.
    """

    def __init__(self, address: str):
        super().__init__(address.rstrip("/"))
        self._token = secrets.token_hex(8)
        self._uploaded: dict[str, tuple[int, int]] = {}
        self._claimed, self._left = False, threading.Event()
        self._signing = threading.Thread(target=self._sign, daemon=True)
        # Here and in what the checkpoints are listed with: others write to the bucket too.
        fsspec_settings.setdefault("gcs", {})["use_listings_cache"] = False

    @functools.cached_property
    def folder(self) -> Path:
        """The working copy."""
        return Path(tempfile.mkdtemp(prefix="jopd-"))

    @property
    def checkpoints(self) -> epath.Path:
        return epath.Path(self.address) / "checkpoints"

    def on_student(self, command: str) -> str:
        return f"gcloud storage cp -r {self}/student . && {command.format('student')}"

    def student(self) -> Path:
        here = self.folder / "student"
        if not here.is_dir():
            with self._explained():
                self.objects.get(f"{self.address}/student/", f"{here}/", recursive=True)
        return here

    @functools.cached_property
    def objects(self) -> fsspec.AbstractFileSystem:
        try:
            return fsspec.filesystem("gs", skip_instance_cache=True)
        except ImportError:
            raise Refused(f"output={self} needs gcsfs: pip install 'jopd[gcs]'") from None

    def names(self) -> list[str]:
        try:
            paths = self.objects.ls(self.address, detail=False)
        except FileNotFoundError:
            return []
        # A folder that was made by hand is an object of its own.
        itself = self.address.removeprefix("gs://")
        found = [path.rstrip("/") for path in paths]
        return [path.rpartition("/")[2] for path in found if path != itself]

    def fetch(self) -> None:
        with self._explained():
            for name in set(READ) & set(self.names()):
                path = self.folder / name
                self.objects.get_file(f"{self.address}/{name}", str(path))
                self._uploaded[name] = _stamp(path)

    def claim(self) -> None:
        if not processes.first():
            return
        with self._explained():
            if not self._make_owner():
                self._take_over()
        self._claimed = True
        self._signing.start()
        # Whoever had it may have gone on since it was looked at.
        self.fetch()

    def push(self) -> None:
        if not self._claimed:
            return
        if not self._is_own(owner := self._owner()):
            raise Taken(f"output={self} was taken over by {_of(owner)}: this run ends here")
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        names = {str(path.relative_to(self.folder)): path for path in files}
        # The report marks a run as finished, and settings hold once lengthened.json is there.
        last = ("config.yaml", "report.json")
        for name in sorted(names, key=lambda name: (name in last, name)):
            stamp = _stamp(names[name])
            if not name.startswith(".") and self._uploaded.get(name) != stamp:
                self.objects.put_file(str(names[name]), f"{self.address}/{name}")
                self._uploaded[name] = stamp

    def clear(self) -> None:
        super().clear()
        self._uploaded.clear()
        for pattern in WRITTEN:
            for path in self.objects.glob(f"{self.address}/{pattern}"):
                self.objects.rm(path, recursive=True)

    def leave(self) -> None:
        """Uploads what is left, and lets others in."""
        try:
            self.push()
        except Exception as error:  # the run itself has ended, well or not, and has said how
            say(f"warning: the last logs are not in {self} but in {self.folder}: {error}")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._left.set()
        if self._claimed:
            self._signing.join()
        if processes.first():
            with contextlib.suppress(Exception):  # whoever comes next waits a minute
                if self._is_own(self._owner()):
                    self.objects.rm_file(f"{self.address}/{OWNER}")

    def _make_owner(self) -> bool:
        """Whether this run has come first."""
        try:
            self.objects.pipe_file(f"{self.address}/{OWNER}", self._signed(), mode="create")
        except FileExistsError:
            # By a first try whose answer was lost, it may be.
            return self._is_own(self._owner())
        return True

    def _take_over(self) -> None:
        """Waits until the owner has given no sign for long enough, and takes its place.

        Raises:
          ValueError: the owner is alive.
        """
        before = self._owner()
        say(
            f"{self} is held by {_of(before)}: waiting up to {PATIENCE_SECONDS} seconds for a sign "
            "of it ..."
        )
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(SIGN_SECONDS / 10)
            if (now := self._owner()) is None and self._make_owner():
                return
            if now != before:
                raise self._in_use(now)
        self._write_owner()
        # Of several that have waited, the last to write has it.
        time.sleep(SIGN_SECONDS)
        if not self._is_own(now := self._owner()):
            raise self._in_use(now)

    def _is_own(self, owner: dict[str, Any] | None) -> bool:
        return owner is not None and owner["run"] == self._token

    def _in_use(self, owner: dict[str, Any] | None) -> Refused:
        return Refused(
            f"output={self} is in use by {_of(owner)}: wait for it or stop it, or choose another "
            "--output"
        )

    def _sign(self) -> None:
        while not self._left.wait(SIGN_SECONDS):
            # A network may be away for a moment.
            with contextlib.suppress(Exception):
                if self._is_own(self._owner()):
                    self._write_owner()

    def _signed(self) -> bytes:
        sign = {"run": self._token, "host": socket.gethostname(), "time": time.time()}
        return json.dumps(sign).encode()

    def _write_owner(self) -> None:
        self.objects.pipe_file(f"{self.address}/{OWNER}", self._signed())

    def _owner(self) -> dict[str, Any] | None:
        try:
            return json.loads(self.objects.cat_file(f"{self.address}/{OWNER}"))
        except FileNotFoundError:
            return None

    @contextlib.contextmanager
    def _explained(self):
        """Whatever the libraries below make of a bucket that isn't there, not ours, or away, in a
        line.
        """
        try:
            yield
        except Refused:
            raise
        except Exception as error:
            what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            lasting = (FileNotFoundError, PermissionError, ValueError)
            if isinstance(error, lasting) or "Forbidden" in what:
                raise Refused(
                    f"output={self} can't be used ({what}): see that the bucket exists and that "
                    "this machine may write to it (gcloud auth application-default login), or "
                    "choose another --output"
                ) from None
            raise SystemExit(
                f"error: output={self} can't be reached ({what}): the same command tries again"
            ) from None


def at(address: str) -> Disk:
    """The place of that name.

    Raises:
      ValueError: a scheme other than gs://.
    """
    scheme, separator, _ = address.partition("://")
    if not separator:
        return Disk(address)
    if scheme != "gs":
        raise ValueError(f"output={address} must be a folder or gs://BUCKET/RUN")
    return Bucket(address)


def _of(owner: dict[str, Any] | None) -> str:
    return f"another run, on {owner['host']}" if owner else "another run"


def _stamp(path: Path) -> tuple[int, int]:
    """What changes when a file does."""
    about = path.stat()
    return about.st_size, about.st_mtime_ns


def _check_shared(folder: Path) -> None:
    """Raises ValueError where this process doesn't see what the first one writes."""
    mark = folder / MARK

    def leave_a_mark() -> str:
        mark.write_text(token := secrets.token_hex(8), encoding="utf-8")
        return token

    token = processes.decided(leave_a_mark)
    deadline = time.monotonic() + 10  # a network's file system may lag behind
    while not (mark.is_file() and mark.read_text(encoding="utf-8") == token):
        if time.monotonic() > deadline:
            raise ValueError(
                f"output={folder} is not the same folder on process {processes.index()} as on "
                "process 0: choose an --output on a disk that all hosts share, or gs://BUCKET/RUN"
            )
        time.sleep(0.1)


def _lock(folder: Path) -> filelock.BaseFileLock:
    lock = filelock.FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise ValueError(
            f"output={folder} is in use by another process: wait for it or stop it, or choose "
            "another folder with --output"
        ) from None
    except NotImplementedError:
        warnings.warn(
            f"output={folder} lies on a file system without locks: keep other processes out of it",
            stacklevel=2,
        )
    except OSError as error:
        raise ValueError(
            f"output={folder} can't be used ({error}): choose another folder with --output"
        ) from None
    return lock
