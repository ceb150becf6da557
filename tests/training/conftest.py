import jax
import pytest

from jopd import train
from jopd.training import setup
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


@pytest.fixture
def refused(capsys, monkeypatch):
    """`refused(command)`: the one line that the command ends with, status 2, before any weight is
    read.
    """

    def run(command: list[str]) -> str:
        def never(*_, **__):
            raise AssertionError("the run read weights")

        monkeypatch.setattr(setup, "read", never)
        with pytest.raises(SystemExit) as stop:
            train.main(command)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1, (
            error
        )
        return error

    return run
