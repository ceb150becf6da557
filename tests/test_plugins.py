"""A user's own file: found, run once, and known by its contents."""

import hashlib
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest

from jopd import plugins


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text("calls = []\nclass Mine:\n    pass\n", encoding="utf-8")
    return path


def test_only_a_python_file_and_a_name_make_a_plugin():
    assert plugins.is_named("a/b.py:Mine")
    for text in ("opd", "jsonl:rows.py", "b.py", "b.py:", "b.py:not a name"):
        assert not plugins.is_named(text)


def test_what_the_file_calls_by_that_name(own):
    mine = plugins.load(f"{own}:Mine")
    assert mine.__name__ == "Mine"
    assert plugins.load(f"{own}:Mine") is mine
    assert type(pickle.loads(pickle.dumps(mine()))) is mine


def test_changed_contents_are_run_anew(own):
    before = plugins.load(f"{own}:Mine")
    own.write_text("class Mine:\n    changed = True\n", encoding="utf-8")
    assert plugins.load(f"{own}:Mine") is not before


def test_a_second_thread_waits_for_a_file_that_the_first_runs(tmp_path):
    file = tmp_path / "slow.py"
    file.write_text("import time\ntime.sleep(0.2)\nVALUE = 3\n", encoding="utf-8")
    with ThreadPoolExecutor(2) as pool:
        assert [*pool.map(plugins.load, [f"{file}:VALUE"] * 2)] == [3, 3]


def test_fingerprint_is_of_the_bytes_and_runs_nothing(tmp_path):
    path = tmp_path / "bomb.py"
    path.write_text("raise SystemExit", encoding="utf-8")
    digest = hashlib.sha256(b"raise SystemExit").hexdigest()
    assert plugins.fingerprint(f"{path}:Anything") == digest[:16]


def test_a_relative_path_is_made_absolute(own, monkeypatch):
    monkeypatch.chdir(own.parent)
    assert plugins.absolute("own.py:Mine") == f"{own}:Mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere.py:Mine", "cannot read .*nowhere.py"),
        ("own.py:Yours", "has no Yours; it has Mine, calls"),
        ("own.py", "path/to/file.py:Name"),
    ],
)
def test_a_wrong_name_says_what_there_is(own, monkeypatch, text, message):
    monkeypatch.chdir(own.parent)
    with pytest.raises(ValueError, match=message):
        plugins.load(text)


def test_a_file_that_fails_is_named_with_its_line(own):
    own.write_text("x = 1\nimport no_such_module\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"own.py:2: ModuleNotFoundError"):
        plugins.load(f"{own}:Mine")


def test_a_syntax_error_is_named(own):
    own.write_text("def\n", encoding="utf-8")
    with pytest.raises(ValueError, match="own.py: SyntaxError"):
        plugins.load(f"{own}:Mine")
