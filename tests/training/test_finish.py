import pytest

from jopd.config import parse
from jopd.diagnostics.tokens import Diagnostics
from jopd.training.finish import shown


@pytest.mark.parametrize(
    "home, run",
    [
        ("runs/default-opsd-seed3", "default-opsd-seed3"),
        ("gs://bucket/default-opsd-seed3-top_k=16", "default-opsd-seed3-top_k=16"),
        ("/home/me/tried/", "tried (default-opsd-seed3)"),
    ],
)
def test_pictures_say_which_run_they_show(home, run):
    words = "--method opsd --seed 3 --rollout.sampling.temperature 0.8"
    preset, config = parse([*words.split(), "--evaluation.sampling.temperature", "0"])
    found = shown(home, preset, config)
    assert found.run == run
    assert (found.batches, found.answers) == ("sampled at temperature 0.8", "greedy")
    assert found.k == Diagnostics("teacher", (1,)).k
