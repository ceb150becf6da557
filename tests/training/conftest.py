import jax
import pytest

from tests.training.tiny import save_model


@pytest.fixture(scope="module")
def quick_compilation():
    """Programs that run once or twice are not worth LLVM's optimisation; XLA's own passes stay."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Folders of a student and of a wider teacher."""
    folder = tmp_path_factory.mktemp("tiny")
    return {
        role: save_model(folder / role, seed=seed, width=8 + 8 * seed)
        for seed, role in ((1, "student"), (2, "teacher"))
    }
