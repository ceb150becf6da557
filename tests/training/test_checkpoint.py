import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jopd.training.checkpoint import Checkpoints, DamagedCheckpoints, check_facts
from jopd.training.state import TrainState
from tests.training.problem import mesh_of

FACTS = {"student": "a", "student_fingerprint": "0123"}


def state_of(step: int, mesh=None) -> TrainState:
    """A state whose every number tells its step; odd bits included."""
    split = jax.sharding.NamedSharding(mesh or mesh_of(), jax.sharding.PartitionSpec("fsdp"))
    leaf = lambda seed: jax.device_put(
        np.random.default_rng([step, seed]).normal(size=(4, 3)).astype(np.float32), split
    )
    params = {"layers": {"kernel": leaf(0)}, "embedding": leaf(1)}
    moments = optax.adam(0.1).init(params)
    moments = jax.tree.map(lambda x: x + 1 if x.ndim else x, moments)
    return TrainState(
        params,
        {"head": leaf(3)},
        moments,
        {"layers": {"kernel": leaf(2)}},
        {"seen": leaf(4)},
        jnp.asarray(step, jnp.int32),
        jnp.array([step, 2**32 - 1], jnp.uint32),
    )


def assert_equal(found: TrainState, wanted: TrainState):
    chex.assert_trees_all_equal(found, wanted)


def steps_in(folder) -> set[int]:
    return {int(path.name) for path in folder.iterdir() if path.name.isdigit()}


def test_what_is_restored_is_what_was_saved_last_bit_for_bit(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2, facts=FACTS)
    assert checkpoints.restore(state_of(0)) is None
    for step in (3, 6):
        checkpoints.save(step, state_of(step), None)
    checkpoints.close()
    again = Checkpoints(tmp_path / "checkpoints", keep=2, facts=FACTS)
    step, state = again.restore(first := state_of(0))
    assert step == 6 and all(leaf.is_deleted() for leaf in jax.tree.leaves(first))
    assert_equal(state, state_of(6))
    again.close()


def test_where_nothing_is_measured_no_checkpoint_is_better_than_the_latest(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, facts=FACTS)
    assert not checkpoints.would_be_best(None) and checkpoints.would_be_best(-7.0)
    checkpoints.save(1, state_of(1), -7.0)
    assert not checkpoints.would_be_best(-7.0) and checkpoints.would_be_best(-6.0)
    checkpoints.close()


def test_it_comes_back_onto_another_mesh(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, facts=FACTS)
    checkpoints.save(1, state_of(1), None)
    like = state_of(0, mesh_of(1, 4, 1))
    _, state = checkpoints.restore(like)
    assert_equal(state, state_of(1))
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, like)
    checkpoints.close()


def test_a_state_may_be_donated_while_it_is_written(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, facts=FACTS)
    state = state_of(5)
    checkpoints.save(5, state, None)
    for leaf in jax.tree.leaves(state.params):
        leaf.delete()
    checkpoints.close()
    again = Checkpoints(tmp_path, keep=1, facts=FACTS)
    assert_equal(again.restore(state_of(0))[1], state_of(5))
    again.close()


def test_the_latest_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, facts=FACTS)
    for step, score in ((1, 0.5), (2, 0.9), (3, None), (4, 0.7), (5, None), (6, None)):
        checkpoints.save(step, state_of(step), score)
    checkpoints.close()
    assert steps_in(tmp_path) == {2, 5, 6}
    again = Checkpoints(tmp_path, keep=1, facts=FACTS)  # scores are on file
    again.save(7, state_of(7), 0.8)
    again.close()
    assert steps_in(tmp_path) == {2, 7}


def test_a_checkpoint_that_a_kill_left_half_written_is_ignored(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, facts=FACTS)
    checkpoints.save(1, state_of(1), None)
    checkpoints.close()
    (half := tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    (half / "state").mkdir()
    again = Checkpoints(tmp_path, keep=2, facts=FACTS)
    step, state = again.restore(state_of(0))
    assert step == 1
    assert_equal(state, state_of(1))
    again.save(2, state_of(2), None)
    again.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_other_models_are_refused_by_name(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, facts=FACTS)
    checkpoints.save(4, state_of(4), None)
    checkpoints.close()
    check_facts(tmp_path, FACTS)
    with pytest.raises(
        ValueError,
        match="cannot resume from step 4: student_fingerprint was 0123, is 4567. .*another "
        "--output",
    ) as error:
        check_facts(tmp_path, FACTS | {"student_fingerprint": "4567"})
    assert "\n" not in str(error.value)


def test_nothing_to_go_on_from_agrees_with_everything(tmp_path):
    check_facts(tmp_path / "missing", FACTS)
    assert not (tmp_path / "missing").exists()
    check_facts(tmp_path, FACTS)


def test_what_a_kill_left_of_deleting_a_checkpoint_goes_with_the_next_one(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, facts=FACTS)
    for step in (1, 2):
        checkpoints.save(step, state_of(step), 0.5 / step)
    checkpoints.close()
    assert steps_in(tmp_path) == {1, 2}  # the best and the latest
    shutil.rmtree(tmp_path / "1" / "metrics")
    again = Checkpoints(tmp_path, keep=1, facts=FACTS)
    for step in (3, 4):
        again.save(step, state_of(step), 0.1)
    again.close()
    assert steps_in(tmp_path) == {2, 4}


def without(name):
    """Removes a file or folder of a checkpoint."""

    def damage(checkpoint):
        path = checkpoint / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def cut_short(checkpoint):
    """Every array file loses its second half."""
    files = [path for path in (checkpoint / "state").rglob("*") if path.is_file()]
    arrays = [path for path in files if path.parent.name == "d"]
    assert arrays
    for path in arrays:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "damage",
    [without("state"), without("state/d"), without("facts"), without("state/_METADATA"), cut_short],
)
def test_a_damaged_newest_checkpoint_costs_the_steps_since_the_one_before(damage, tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    checkpoints = Checkpoints(folder, keep=3, facts=FACTS)
    for step in (2, 4):
        checkpoints.save(step, state_of(step), None)
    checkpoints.close()
    damage(folder / "4")
    check_facts(folder, FACTS)
    again = Checkpoints(folder, keep=3, facts=FACTS)
    step, state = again.restore(state_of(0))
    assert step == 2
    assert_equal(state, state_of(2))
    assert "the checkpoint of step 4 is damaged" in capsys.readouterr().out
    # The step comes again.
    again.save(4, state_of(4), None)
    again.close()
    last = Checkpoints(folder, keep=3, facts=FACTS)
    step, state = last.restore(state_of(0))
    assert step == 4 and [*(tmp_path / "damaged-checkpoints").glob("4-*")]
    assert_equal(state, state_of(4))
    last.close()


def test_checkpoints_that_are_all_damaged_are_refused_and_left_where_they_are(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3, facts=FACTS)
    checkpoints.save(2, state_of(2), None)
    checkpoints.close()
    cut_short(tmp_path / "2")
    again = Checkpoints(tmp_path, keep=3, facts=FACTS)
    with pytest.raises(DamagedCheckpoints, match=r"none of .* can be read \(steps 2\)"):
        again.restore(state_of(0))
    again.close()
    assert (tmp_path / "2").is_dir()


def test_a_later_format_is_refused_and_another_version_of_the_same_is_not(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, facts=FACTS | {"jopd": "0.1.0"})
    checkpoints.save(2, state_of(2), None)
    checkpoints.close()
    check_facts(tmp_path, FACTS | {"jopd": "0.2.0"})
    path = tmp_path / "2" / "facts" / "metadata"
    facts = json.loads(path.read_text())
    assert facts["format"] == 2
    path.write_text(json.dumps(facts | {"format": 3}))
    with pytest.raises(ValueError, match="have format 3, and this version reads up to 2"):
        check_facts(tmp_path, FACTS)


def test_the_data_fingerprints_of_the_first_format_are_not_compared(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, facts=FACTS | {"train_fingerprint": "made so"})
    checkpoints.save(2, state_of(2), None)
    checkpoints.close()
    now = FACTS | {"train_fingerprint": "and so"}
    with pytest.raises(ValueError, match="train_fingerprint was made so, is and so"):
        check_facts(tmp_path, now)
    path = tmp_path / "2" / "facts" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1}))
    check_facts(tmp_path, now)
    with pytest.raises(ValueError, match="student was a, is b"):
        check_facts(tmp_path, now | {"student": "b"})
