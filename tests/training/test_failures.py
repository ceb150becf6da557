import errno

import jax
import jax.numpy as jnp
import pytest

from jopd.training.failures import DISK, MEMORY, explained, is_out_of_room


def test_what_the_backend_says_of_memory_becomes_a_line_with_the_way_out():
    with pytest.raises(jax.errors.JaxRuntimeError) as error:
        jnp.zeros(1 << 40)
    line = explained(error.value)
    assert line.startswith("out of memory allocating 4,398.0 GB: raise --micro-batches")
    assert "--chunk-tokens" in line and "--student.compute.remat" in line and "\n" not in line


def test_a_bucket_that_is_away_is_a_line_too():
    outer = RuntimeError("while saving")
    outer.__cause__ = ValueError("UNAVAILABLE: Error writing\n to bucket")
    assert explained(outer) == "the bucket can't be reached (RuntimeError: while saving)"
    assert explained(RuntimeError("INTERNAL: something else")) is None


def test_a_process_that_has_gone_is_not_called_a_bucket():
    said = "DEADLINE_EXCEEDED: Barrier timed out. Id: save_7::0. Timed out task names: process 1"
    assert explained(RuntimeError(f"while saving\n{said}\nmore")) == (
        f"another process of this run no longer answers ({said})"
    )
    assert explained(ValueError("cannot read barrier.jsonl")) is None


@pytest.mark.parametrize(
    "error, what",
    [
        (OSError(errno.ENOSPC, "No space left on device"), DISK),
        (ValueError("Error writing ... [os_error_code='28'] No space left on device"), DISK),
        (MemoryError(), MEMORY),
        (RuntimeError("INTERNAL: something else"), None),
        (OSError(errno.EACCES, "Permission denied"), None),
    ],
)
def test_what_ran_out(error, what):
    assert is_out_of_room(error) == what
    assert (explained(error) is None) == (what is None)
    outer = RuntimeError("while saving")
    outer.__cause__ = error
    assert is_out_of_room(outer) == what
