"""`jopd.check device` finds a good machine good, and each kind of fault a fault."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopd import check, device
from jopd.models import attention


def test_this_machine_is_good_and_everything_was_looked_at(capsys):
    assert check.device_is_good()
    said = capsys.readouterr().out
    for what in (
        "sampler against trainer, float32",
        "sampler against trainer, bfloat16",
        f"{jax.device_count()} devices against one",
        "bfloat16 against float32",
        "a checkpoint written and read",
    ):
        assert any(what in line and line.endswith(": ok") for line in said.splitlines()), said


@pytest.mark.parametrize("scale, good", [(1.0, True), (0.9, False)])
def test_a_kernel_that_differs_is_found_with_what_to_set(scale, good, monkeypatch, capsys):
    portable = functools.partial(attention.by_cudnn, implementation="xla")
    monkeypatch.setattr(attention, "by_cudnn", lambda *x: portable(*x) * jnp.float32(scale))
    finding = device.of_kernel("cudnn", "float32")
    assert finding.good == good and finding.instead == "--student.compute.attention matmul"
    monkeypatch.setattr(device, "findings", lambda: iter([finding]))
    if good:
        check.main(["device"])
        return
    with pytest.raises(SystemExit) as stop:
        check.main(["device"])
    assert stop.value.code == 1
    assert "NOT GOOD: set --student.compute.attention matmul" in capsys.readouterr().out


def test_a_number_that_is_none_is_not_good():
    assert not device.Finding("x", float("nan"), 1.0, "y").good


def test_a_checkpoint_that_comes_back_changed_is_counted(monkeypatch):
    restore = device.Checkpoints.restore

    def changed(self, like):
        step, state = restore(self, like)
        kernel = np.array(state.params["kernel"])
        kernel[3, :5] += 1
        return step, state._replace(params={"kernel": jnp.asarray(kernel)})

    monkeypatch.setattr(device.Checkpoints, "restore", changed)
    finding = device.of_checkpoint()
    assert finding.found == 5 and not finding.good
