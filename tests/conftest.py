"""How every test sees JAX: eight CPU devices, no silent promotion of types or ranks, array types
checked.
"""

import os
import pathlib
import tempfile

import hypothesis
import jax
import jaxtyping
import pytest

jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS", "cpu"))
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update(
    "jax_compilation_cache_dir", str(pathlib.Path(tempfile.gettempdir(), "jopd-tests-jax-cache"))
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

# The same examples on every machine, and no deadline: the first call of each compiles.
hypothesis.settings.register_profile("jopd", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("jopd")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")
    parser.addoption(
        "--jaxtyping",
        choices=("on", "off"),
        default="on",
        help="check array types and shapes at run time",
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: needs a real model or minutes; run with --slow")
    if config.getoption("--jaxtyping") == "on":
        jaxtyping.install_import_hook("jopd", "beartype.beartype")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    slow = [item for item in items if "slow" in item.keywords]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if "slow" not in item.keywords]


@pytest.fixture
def types_unchecked():
    """Types unchecked, as users run it: for messages that a type error would come before."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
