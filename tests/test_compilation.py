import jax
import pytest

from jopd.compilation import compiled_for, keep_compiled


@pytest.fixture
def told(monkeypatch):
    """Sets where JAX was told to keep what it compiles, and puts back what the tests use."""
    usual = jax.config.values["jax_compilation_cache_dir"]
    yield lambda folder: jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_compilation_cache_dir", usual)


@pytest.mark.parametrize("before", [None, "/elsewhere"])
def test_it_is_kept_in_the_users_cache_unless_told_otherwise(before, told, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    told(before)
    keep_compiled()
    kept = jax.config.values["jax_compilation_cache_dir"]
    assert kept == (before or str(tmp_path / "jopd" / "compiled"))


def test_a_cache_folder_that_cannot_be_made_is_done_without(told, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    told(None)
    keep_compiled()
    assert jax.config.values["jax_compilation_cache_dir"] is None


def test_compiling_is_timed():
    before = compiled_for()
    double = jax.jit(lambda x: 2 * x + 12345.0)
    double(1.0)
    after = compiled_for()
    double(2.0)
    assert before < after == compiled_for()
