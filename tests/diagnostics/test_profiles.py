import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopd import losses
from jopd.diagnostics import profiles
from jopd.diagnostics.profiles import (
    binned,
    by_length,
    by_position,
    effective_sample_size,
    late,
    length_bins,
    mean,
    of_a_batch,
    position_bins,
    quantiles,
    quarters,
    repeats,
    repetition,
    share_by_length,
    update_size,
)
from jopd.losses.stages import vocabulary_stage
from tests.reference import diagnostics as reference

# Completions of 2, 4 and 1 tokens; what stands outside the mask must not count.
MASK = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]], bool)
VALUES = np.array([[1.0, 3.0, 99.0, np.nan], [0.5, 0.5, 0.5, 0.5], [2.0, 99.0, 99.0, np.inf]])


def prefix(*lengths: int, width: int | None = None) -> np.ndarray:
    return np.arange(width or max(lengths))[None] < np.array(lengths)[:, None]


def test_positions_are_relative_to_each_completions_length():
    # Of 2 tokens the places are 1/4 and 3/4, of 4 tokens 1/8, 3/8, 5/8, 7/8, of one 1/2: bins 2, 7;
    # 1, 3, 6, 8; 5.
    assert [
        row[:length].tolist() for row, length in zip(position_bins(MASK), (2, 4, 1), strict=True)
    ] == [
        [2, 7],
        [1, 3, 6, 8],
        [5],
    ]
    assert by_position(VALUES, MASK) == [None, 0.5, 1.0, 0.5, None, 2.0, 0.5, 3.0, 0.5, None]
    assert by_position(VALUES, MASK, bins=2) == [
        pytest.approx((1 + 0.5 + 0.5) / 3),
        pytest.approx((3 + 1 + 2) / 4),
    ]
    assert by_position(VALUES, np.zeros_like(MASK)) == [None] * 10


def test_positions_that_fall_on_an_edge_belong_to_the_bin_that_begins_there():
    # (t + 1/2) / 15 = k / 10 at t = 1, 4, 7, 10, 13; as binary fractions some of these come out
    # below k.
    bins = position_bins(prefix(15))[0]
    assert bins[[1, 4, 7, 10, 13]].tolist() == [1, 3, 5, 7, 9]
    mask = prefix(20)
    assert by_position(np.arange(20.0)[None], mask) == [
        0.5 + 2 * k for k in range(10)
    ]  # tokens 2 k and 2 k + 1


def test_bins_are_the_same_in_numpy_and_in_jax():
    mask = prefix(*range(65), width=64)
    for function in (
        position_bins,
        lambda mask: position_bins(mask, 7),
        lambda mask: length_bins(mask, (16, 32, 48)),
        late,
    ):
        np.testing.assert_array_equal(jax.jit(function)(mask), function(mask))


def test_length_buckets_begin_at_their_edge():
    assert quarters(1024) == (256, 512, 768) and quarters(2) == (1,) and quarters(1) == ()
    lengths = (0, 255, 256, 511, 512, 767, 768, 1024)
    assert length_bins(prefix(*lengths), quarters(1024))[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_late_is_the_last_fifth():
    # Of 10 tokens the places of the last two are .85 and .95; of 5 the last is .9; of 3 it is 5/6;
    # of 2, 3/4 is too early.
    assert late(prefix(10, 5, 3, 2)).sum(1).tolist() == [2, 1, 1, 0]
    assert late(prefix(10))[0, 8:].all()
    assert late(prefix(10), share=0.5).sum() == 5


def test_a_mean_over_tokens_has_its_interval_over_rows():
    # Sums 4, 2, 2 over counts 2, 4, 1: residuals 12/7, -18/7, 6/7, so the standard error is
    # sqrt(3/2 * 504/49) / 7.
    half = 1.959964 * np.sqrt(1.5 * 504 / 49) / 7
    expected = {"value": 8 / 7, "low": 8 / 7 - half, "high": 8 / 7 + half, "count": 3}
    assert mean(VALUES, MASK) == {name: pytest.approx(value) for name, value in expected.items()}
    assert mean(VALUES, np.zeros_like(MASK)) is None


def test_means_by_length():
    buckets = by_length(VALUES, MASK, (2, 3))
    assert [(b["from"], b["to"], b["count"]) for b in buckets] == [
        (0, 2, 1),
        (2, 3, 1),
        (3, None, 1),
    ]
    assert [b["value"] for b in buckets] == [2, 2, 0.5]
    assert by_length(VALUES, MASK, (5,))[1] == {"from": 5, "to": None, "count": 0}


def test_shares_by_length():
    low, middle, high = share_by_length([True, False, True, True], [3, 3, 9, 9], (4, 8))
    # Wilson at 1 of 2 with z = 1.95996: 1/2 -+ z sqrt(1/8 + z^2/16) / (1 + z^2/2), all over 2.
    assert low == {
        "from": 0,
        "to": 4,
        "value": 0.5,
        "low": pytest.approx(0.0945312),
        "high": pytest.approx(0.9054688),
        "count": 2,
    }
    assert middle == {"from": 4, "to": 8, "count": 0}
    assert (high["from"], high["to"], high["value"], high["count"]) == (8, None, 1.0, 2)


def test_repetition():
    # abcdabcda: the 4-grams are abcd bcda cdab dabc | abcd bcda, of which the last two have been
    # there.
    tokens = np.array(
        [[0, 1, 2, 3, 0, 1, 2, 3, 0], [5, 5, 5, 5, 5, 5, 9, 9, 9], [1, 1, 1, 7, 7, 7, 7, 7, 7]]
    )
    mask = prefix(9, 6, 3)
    repeated, complete = repeats(tokens, mask)
    assert repeated.sum(1).tolist() == [2, 2, 0] and complete.sum(1).tolist() == [6, 3, 0]
    assert repeated[0].nonzero()[0].tolist() == [7, 8]
    total = jax.jit(repetition)(tokens, mask)
    assert (total.sum, total.count) == (4, 9)
    assert jax.jit(repetition)(tokens[:, :2], mask[:, :2]).count == 0


@pytest.mark.parametrize("n", [1, 2, 4])
def test_repetition_of_random_texts(n):
    generator = np.random.default_rng(n)
    tokens, lengths = generator.integers(-2, 2, size=(20, 12)), generator.integers(0, 13, size=20)
    mask = prefix(*lengths, width=12)
    expected = [
        reference.repetition(row[:length].tolist(), n)
        for row, length in zip(tokens, lengths, strict=True)
    ]
    repeated, complete = repeats(tokens, mask, n)
    assert list(zip(repeated.sum(1), complete.sum(1), strict=True)) == expected
    total = jax.jit(repetition, static_argnums=2)(tokens, mask, n)
    assert (int(total.sum), int(total.count)) == tuple(np.sum(expected, axis=0))


def test_totals_by_bin_add_up_to_the_hosts_profile():
    generator = np.random.default_rng(0)
    mask = prefix(*generator.integers(1, 24, size=8), width=24)
    values = np.where(mask, generator.normal(size=mask.shape), np.nan)
    profile = jax.jit(
        lambda values, mask: binned(values, mask, position_bins(mask), profiles.POSITIONS)
    )
    parts = [
        profile(jnp.asarray(values[rows], jnp.float32), mask[rows])
        for rows in (slice(0, 5), slice(5, 8))
    ]
    found = (parts[0].sum + parts[1].sum) / (parts[0].count + parts[1].count)
    np.testing.assert_allclose(found, by_position(values, mask), rtol=1e-5)
    assert sum(int(part.count.sum()) for part in parts) == mask.sum()
    # By length, an index a row.
    total = jax.jit(lambda values, mask: binned(values, mask, length_bins(mask, (2, 3)), 3))(
        jnp.asarray(VALUES, jnp.float32), MASK
    )
    assert total.sum.tolist() == [2, 4, 2] and total.count.tolist() == [1, 2, 4]


def test_quantiles_are_numpys():
    generator = np.random.default_rng(0)
    values, mask = generator.normal(size=(7, 9)), generator.random((7, 9)) < 0.5
    find = jax.jit(quantiles)
    expected = np.quantile(values[mask], profiles.QUANTILES)
    np.testing.assert_allclose(find(jnp.asarray(values, jnp.float32), mask), expected, rtol=1e-5)
    one = np.zeros_like(mask)
    one[3, 3] = True
    np.testing.assert_allclose(find(jnp.asarray(values, jnp.float32), one), values[3, 3], rtol=1e-6)
    assert np.isnan(find(jnp.asarray(values, jnp.float32), np.zeros_like(mask))).all()
    # An infinite log-ratio is one value among the others.
    found = find(
        jnp.asarray([[-np.inf, 0.0, 1.0, 2.0, np.inf]], jnp.float32), np.ones((1, 5), bool)
    )
    np.testing.assert_array_equal(found, [-np.inf, 0, 1, 2, np.inf])


def test_effective_sample_size_by_hand():
    find = jax.jit(effective_sample_size)
    mask = np.array([[1, 1, 1, 0]], bool)
    # (1 + 2 + 3)^2 / (1 + 4 + 9) = 18 / 7; in any unit.
    for scale in (1.0, 1e-30, 1e30):
        size = jnp.asarray(np.array([[1, 2, 3, 99]]) * scale, jnp.float32)
        np.testing.assert_allclose(find(size, mask), 18 / 7, rtol=1e-6)
    np.testing.assert_allclose(find(jnp.full((1, 4), 0.3), mask), 3, rtol=1e-6)
    assert find(jnp.zeros((1, 4)), mask) == 0


def test_shares_of_tokens_by_hand():
    mask = jnp.asarray([[1, 1, 1, 1, 0]], bool)
    values = jnp.asarray([[-6.0, 0.0, 5.0, 5.5, 7.0]])
    size = jnp.asarray([[0.2, 0.0, 1e-4, 3.0, 7.0]])
    some = {"chosen": (values, jnp.asarray([[0, 1, 1, 0, 0]], bool))}
    found = of_a_batch(
        {"log_ratio": values, "update_size": size}, jnp.arange(5)[None], mask, (2,), some
    )
    assert found["clip_share"] == 0.5 and found["effective_update_share"] == 0.5
    # Four tokens on ten bins of relative position stand in bins 1, 3, 6 and 8.
    for name, at in (("clip_share", [1, 0, 0, 1]), ("effective_update_share", [1, 0, 0, 1])):
        np.testing.assert_array_equal(found[f"{name}_by_position"][jnp.asarray([1, 3, 6, 8])], at)
    # (.2 + .0001 + 3)^2 / (.2^2 + .0001^2 + 3^2): the token behind the end does not count.
    np.testing.assert_allclose(found["effective_sample_size"], 3.2001**2 / 9.04000001, rtol=1e-6)
    # One token a bin: it is its own quantile, and one of one that count; the second one's size is
    # 0.
    np.testing.assert_array_equal(
        found["effective_sample_size_by_position"], [0, 1, 0, 0, 0, 0, 1, 0, 1, 0]
    )
    np.testing.assert_array_equal(found["log_ratio_quantiles_by_position"][1], [-6] * 5)
    assert np.isnan(found["log_ratio_quantiles_by_position"][0]).all()
    # Of some tokens, their own mean.
    assert found["chosen"] == 2.5 and found["chosen_by_length"][1] == 2.5
    np.testing.assert_array_equal(
        found["chosen_by_position"][jnp.asarray([1, 3, 6, 8])], [np.nan, 0, 5, np.nan]
    )


@pytest.mark.parametrize(
    "name, settings, inputs, expected",
    [
        # l is log 2 and log 2/3; weights multiply, a clip bounds, and a return counts what follows.
        ("opd_pg", {}, {}, [np.log(2), np.log(1.5)]),
        ("opd_pg", {"log_ratio_clip": 0.5}, {"weight": [[0.5, 0.0]]}, [0.25, 0]),
        ("opd_pg", {"credit": "return_to_go"}, {}, [np.log(4 / 3), np.log(1.5)]),
        # IW-OPD: 1.5 at the first token; half a weight more for what is still to come at the
        # second.
        ("iw_opd", {}, {}, [1.5 * np.log(2), np.log(1.5) * (1.5 - 0.5 * np.log(2) / np.log(3))]),
        # A direct loss has its weight and gate alone, times the size of the log-ratio.
        ("opd", {}, {"weight": [[0.5, 1.0]]}, [0.5 * np.log(2), np.log(1.5)]),
        ("ar_opd", {"skip_tokens": 1}, {}, [0, np.log(1.5)]),
        ("edge_opd", {}, {"evidence": [[1.0, -1.0]], "kept": [[1.0, 0.0]]}, [np.log(2), 0]),
    ],
)
def test_the_size_of_an_update_is_weight_times_gate_times_advantage(
    name, settings, inputs, expected
):
    method = losses.get(name, **settings)
    student, teacher = jnp.log(jnp.asarray([[[0.25, 0.75]] * 3])), jnp.zeros((1, 3, 2))
    tokens, mask = jnp.asarray([[0, 1, 1]]), jnp.asarray([[True, True, False]])
    inputs = {
        name: jnp.pad(jnp.asarray(values), ((0, 0), (0, 1)), constant_values=9.0)
        for name, values in inputs.items()
    }
    views = dict.fromkeys(method.views, teacher)
    terms = vocabulary_stage(method, student, views, tokens, mask, {})
    log_ratio = jnp.log(jnp.asarray([[2.0, 2 / 3, 5.0]]))
    found = update_size(method, terms, mask, inputs, log_ratio)
    np.testing.assert_allclose(found[0, :2], expected, rtol=1e-5, atol=1e-7)


def test_gates_that_are_shut_leave_nothing_to_update():
    method = losses.stabilised(losses.get("opd_pg"), losses.Stabilisers(teacher_entropy_above=20.0))
    student, teacher = jnp.log(jnp.asarray([[[0.25, 0.75]] * 2])), {"teacher": jnp.zeros((1, 2, 2))}
    tokens, mask = jnp.asarray([[0, 1]]), jnp.ones((1, 2), bool)
    gate = method.prepare(
        vocabulary_stage(method.scoring(), student, teacher, tokens, mask, {}), mask, {}
    )
    terms = vocabulary_stage(method, student, teacher, tokens, mask, {})
    assert not update_size(method, terms, mask, gate, jnp.ones((1, 2))).any()
