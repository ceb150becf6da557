import jax
import jax.numpy as jnp
import numpy as np
import optax

from jopd import losses
from jopd.config import Config, Teacher
from jopd.training.setup import initial_state
from jopd.training.state import LORA, real_copy, separate, union
from tests.training.problem import mesh_of


def test_leaves_are_separated_by_name_and_put_together_again():
    params = {
        "a": {"kernel": 1, "lora_a": 2},
        "b": {"c": {"lora_b": 3}, "kernel": 4},
        "norm": {"weight": 5},
    }
    chosen, others = separate(params, LORA)
    assert chosen == {"a": {"lora_a": 2}, "b": {"c": {"lora_b": 3}}}
    assert others == {"a": {"kernel": 1}, "b": {"kernel": 4}, "norm": {"weight": 5}}
    assert union(chosen, others) == union(others, chosen) == params
    assert union(params, {}) == union({}, params) == params


def test_a_real_copy_has_buffers_of_its_own():
    params = {"a": jnp.arange(4.0)}
    copied = real_copy(params)
    params["a"].delete()
    np.testing.assert_array_equal(copied["a"], np.arange(4.0))


def test_the_state_of_step_0_starts_where_the_mesh_puts_it_and_an_ema_teacher_owns_its_buffers():
    mesh = mesh_of(1, 2, 2)
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    params = {
        "layers": {"mlp": {"up": {"kernel": jnp.ones((2, 16, 24))}}},
        "embedding": jnp.ones((64, 16)),
    }
    params = jax.tree.map(lambda leaf: jax.device_put(leaf, place), params)
    for update, ema in (("frozen", False), ("ema", True), ("live", False)):
        teacher = Teacher(model="self")
        config = Config(method=losses.get("opsd", teacher_update=update), teacher=teacher, seed=7)
        state, shardings = initial_state(params, optax.adam(0.1), mesh, config, 16)
        assert jax.tree.map(lambda leaf: leaf.sharding, state) == shardings
        assert state.step == 0 and bool(state.ema_teacher) == ema
        np.testing.assert_array_equal(state.key, jax.random.key_data(jax.random.key(7)))
        for mine, copied in zip(
            *map(jax.tree.leaves, (state.params, state.ema_teacher or state.params)), strict=True
        ):
            np.testing.assert_array_equal(mine, copied)
            pointers = [
                {part.data.unsafe_buffer_pointer() for part in leaf.addressable_shards}
                for leaf in (mine, copied)
            ]
            assert pointers[0].isdisjoint(pointers[1]) == ema
        # Moments are placed as parameters are by the mesh's rules, whatever the parameters' own
        # placement.
        assert state.optimizer[0].mu["student"]["layers"]["mlp"]["up"]["kernel"].addressable_shards[
            0
        ].data.shape == (
            2,
            8,
            12,
        )
