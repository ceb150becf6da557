"""The tiled vocabulary stage against `token_terms` on whole logits, and against formulas."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jopd import losses
from jopd.losses import tiled
from jopd.losses.chunked import Scored, chunked_terms
from jopd.losses.divergences import JensenShannon, OfEntries, TotalVariation
from jopd.losses.moments import moments
from jopd.losses.stages import vocabulary_stage
from jopd.losses.tiled import tiled_terms
from jopd.losses.tiles import Tiling
from tests.losses.problem import (
    BATCH,
    LENGTH,
    METHODS,
    VOCABULARY,
    largest_array,
    logits_of,
    problem,
    short,
)
from tests.reference import divergences as reference

OPD = losses.get("opd")
TILED = [
    *[method for method in METHODS if method.tiled],
    losses.get("opd", divergence="forward_kl"),
    losses.get("opd", divergence="jensen_shannon", beta=0.3),
    losses.get("opd", divergence="total_variation"),
    losses.get("opsd", divergence="reverse_kl"),
    losses.get("opsd", divergence="jensen_shannon"),
    losses.stabilised(
        losses.get("opd", divergence="jensen_shannon"), losses.Stabilisers(kl_to_initial=0.1)
    ),
    losses.get("opd_pg", baseline="kl"),
    losses.get("g_opd", scale=1.0),
    losses.get("ar_opd", scale=1.2, clip=0.5),
    losses.stabilised(losses.get("ar_opd"), losses.Stabilisers(kl_to_initial=0.1)),
]
CHUNKED = [
    *[losses.get(name) for name in ("cr_opd", "entropy_opd")],
    losses.get("ar_opd", clip=1000.0),
    losses.get("ar_opd", temperature=2.0),
    losses.get("opd", temperature=2.0),
    losses.get("opd", top_k=3),
    losses.get("opsd", entry_clamp=0.05),
    losses.get("opd_pg", temperature=0.5),
    losses.get("opd_pg", baseline="kl", log_ratio_clip=5.0),
    losses.get("vopd", log_ratio_clip=5.0),
    losses.get("gae_opd", critic="kl_split", log_ratio_clip=5.0),
    losses.stabilised(losses.get("cr_opd"), losses.Stabilisers(kl_to_initial=0.1)),
]


@pytest.fixture(autouse=True)
def narrow_tiles(monkeypatch):
    """Uneven tiles of 54 entries, as the vocabulary of these tests is one of the usual ones."""
    monkeypatch.setattr(tiled, "_LANES", 1)
    monkeypatch.setattr(tiled, "_ENTRIES", 54)


def in_dtype(given, dtype):
    """A problem with floats of that type."""
    floating = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
    return jax.tree.map(lambda x: x.astype(dtype) if floating(x) else x, given)


def by_tiles(method, student, rest, *, chunk=4, vocabulary=VOCABULARY, **layout):
    return tiled_terms(
        method,
        student,
        rest.teachers,
        rest.tokens,
        rest.mask,
        chunk=chunk,
        vocabulary=vocabulary,
        **layout,
    )


def by_rows(method, student, rest):
    """The same terms, of `token_terms` on whole logits."""
    logits = {view: logits_of(scored) for view, scored in rest.teachers.items()}
    return vocabulary_stage(method, logits_of(student), logits, rest.tokens, rest.mask, {})


def with_gradient(terms_of):
    """Terms, and the student's gradient of a sum of them under weights of every sign."""

    def loss(student, rest):
        terms = terms_of(student, rest)
        draw = np.random.default_rng(2)
        weights = [jnp.asarray(draw.normal(size=(BATCH, LENGTH))) for _ in terms]
        parts = [
            jnp.where(rest.mask, weight.astype(terms[name].dtype) * terms[name], 0).sum()
            for name, weight in zip(sorted(terms), weights, strict=True)
        ]
        return sum(parts), terms

    def terms_and_gradient(student, rest):
        (_, terms), gradient = jax.value_and_grad(loss, has_aux=True)(student, rest)
        return terms, gradient

    return jax.jit(terms_and_gradient)


def assert_same(actual, expected, *, rtol=5e-5, atol=5e-6):
    (terms, gradient), (expected_terms, expected_gradient) = actual, expected
    assert terms.keys() == expected_terms.keys()
    for name in terms:
        np.testing.assert_allclose(
            terms[name], expected_terms[name], rtol=rtol, atol=atol, err_msg=name
        )
    # Entries of the head's gradient are sums over all tokens.
    atol = 10 * atol
    np.testing.assert_allclose(gradient.hidden, expected_gradient.hidden, rtol=rtol, atol=atol)
    np.testing.assert_allclose(gradient.head, expected_gradient.head, rtol=rtol, atol=atol)


@functools.cache
def expected(method):
    given = problem(method)
    return jax.device_get(with_gradient(functools.partial(by_rows, method))(given.student, given))


# Against whole logits.


DIVERGENCES = ("reverse_kl", "forward_kl", "jensen_shannon", "total_variation", "k2", "k3")
# Each compiles three programs.
QUICK = ("opd", "opd_pg", "edge_opd", "topd")


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(method, marks=() if method.name in QUICK else pytest.mark.slow)
        for method in TILED
    ],
    ids=short,
)
def test_a_tiled_form_has_the_terms_and_the_gradient_of_whole_logits(method):
    given = problem(method)
    in_tiles = with_gradient(functools.partial(by_tiles, method))
    in_rows = with_gradient(functools.partial(by_rows, method))
    with jax.enable_x64(True):
        wide = in_dtype(given, jnp.float64)
        exact = jax.device_get(in_rows(wide.student, wide))
        assert_same(in_tiles(wide.student, wide), exact, rtol=1e-10, atol=1e-11)
    assert_same(in_tiles(given.student, given), exact)


@pytest.mark.parametrize(("chunk", "entries"), [(1, 160), (4, 16), (7, 80), (0, 54), (0, 160)])
def test_any_tile_gives_the_same(chunk, entries, monkeypatch):
    monkeypatch.setattr(tiled, "_ENTRIES", entries)
    given = problem(OPD)
    in_tiles = with_gradient(functools.partial(by_tiles, OPD, chunk=chunk))
    assert_same(in_tiles(given.student, given), expected(OPD))


def test_hidden_states_outside_the_mask_do_not_exist():
    given = problem(OPD)
    spoil = lambda scored: scored._replace(
        hidden=jnp.where(given.mask[:, :, None], scored.hidden, jnp.nan)
    )
    spoilt = given._replace(
        teachers={view: spoil(scored) for view, scored in given.teachers.items()}
    )
    terms, gradient = with_gradient(functools.partial(by_tiles, OPD))(spoil(given.student), spoilt)
    assert_same((terms, gradient), expected(OPD))
    assert not gradient.hidden[~given.mask].any()


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("columns", [(8, 32), (8, 0), (0, 32)])
def test_columns_that_pad_a_head_do_not_exist(columns, shards):
    given = problem(OPD)
    pad = lambda scored, more: scored._replace(
        head=jnp.pad(scored.head, ((0, 0), (0, more)), constant_values=9.0)
    )
    padded = given._replace(teachers={"teacher": pad(given.teachers["teacher"], columns[1])})
    in_tiles = with_gradient(functools.partial(by_tiles, OPD, shards=shards))
    terms, gradient = in_tiles(pad(given.student, columns[0]), padded)
    assert not gradient.head[:, VOCABULARY:].any()
    assert_same((terms, gradient._replace(head=gradient.head[:, :VOCABULARY])), expected(OPD))


def test_a_tied_head_has_the_gradient_of_both_its_uses():
    given = problem(OPD)

    def student_of(embedding):
        return Scored(given.student.hidden + embedding[given.tokens], embedding.T)

    def of(terms_of):
        loss = lambda embedding: terms_of(OPD, student_of(embedding), given)["divergence"].sum()
        return jax.jit(jax.grad(loss))(given.student.head.T)

    np.testing.assert_allclose(of(by_tiles), of(by_rows), rtol=5e-5, atol=5e-5)


@pytest.mark.parametrize("chunk", [4, 0])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_equal_models_give_exactly_no_loss_and_no_gradient(divergence, dtype, chunk):
    method = losses.get("opd", divergence=divergence)
    student = problem(method).student
    student = student._replace(hidden=student.hidden.astype(dtype))
    given = problem(method)._replace(teachers={"teacher": student})

    def loss(student, rest):
        terms = by_tiles(method, student, rest, chunk=chunk)
        return terms["divergence"].sum(), terms

    (_, terms), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(student, given)
    for exactly_zero in (terms["divergence"], terms["kl"], *gradient):
        np.testing.assert_array_equal(np.asarray(exactly_zero, np.float32), 0)
    np.testing.assert_array_equal(terms["top1_agreement"], 1)


def test_a_bfloat16_forward_leaves_the_heads_gradient_float32():
    given = problem(OPD)
    narrow = lambda scored: scored._replace(hidden=scored.hidden.astype(jnp.bfloat16))
    rest = given._replace(
        teachers={view: narrow(scored) for view, scored in given.teachers.items()}
    )
    terms, gradient = with_gradient(functools.partial(by_tiles, OPD))(narrow(given.student), rest)
    assert {values.dtype for values in terms.values()} == {jnp.dtype("float32")}
    assert gradient.hidden.dtype == jnp.bfloat16 and gradient.head.dtype == jnp.float32
    exact = expected(OPD)[1].head
    assert np.linalg.norm(gradient.head - exact) < 0.02 * np.linalg.norm(exact)


def test_a_bfloat16_student_has_a_way_back_through_a_tied_head(monkeypatch):
    """Whose head is the embedding on its side; of products large enough for a CPU's fast paths."""
    monkeypatch.setattr(tiled, "_ENTRIES", 4096)
    normal = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape)
    embedding, hidden, teacher = (
        normal(i, *shape, 128) for i, shape in enumerate([(4096,), (2, 768), (2, 768)])
    )
    tokens, mask = jnp.zeros((2, 768), jnp.int32), jnp.ones((2, 768), bool)

    def gradient(terms_of, dtype):
        read = lambda hidden, table: Scored(hidden.astype(dtype), table.T)
        loss = lambda hidden, table: terms_of(
            OPD, read(hidden, table), {"teacher": read(teacher, table)}, tokens, mask
        )["divergence"].mean()
        return jax.jit(jax.grad(loss, argnums=(0, 1)))(hidden, embedding)

    in_tiles = functools.partial(tiled_terms, chunk=0, vocabulary=4096)
    whole = functools.partial(chunked_terms, extras={}, chunk=0, vocabulary=4096)
    found, exact = gradient(in_tiles, jnp.bfloat16), gradient(whole, jnp.float32)
    for narrow, wide in zip(found, exact, strict=True):
        assert np.linalg.norm(narrow - wide) < 0.02 * np.linalg.norm(wide)


# Against numbers of their own: with the identity as the head, hidden states are logits.


def read(student, teacher, tokens, size, gradient_of=None, second=None):
    """The moments of logits [n, V] in tiles of that size, in float64; or the gradient in the
    student's of the sum of what `gradient_of` picks.
    """
    entries = student.shape[-1]
    with jax.enable_x64(True):
        scored = lambda z: Scored(jnp.asarray(z, jnp.float64)[None], jnp.eye(entries))
        ids = jnp.asarray(tokens)[None]

        def of(z):
            return moments(scored(z), {"t": scored(teacher)}, ids, Tiling(entries, size), second)

        if gradient_of is None:
            return jax.device_get(jax.jit(of)(student))
        return jax.device_get(jax.jit(jax.grad(lambda z: gradient_of(of(z)).sum()))(student))


@pytest.mark.parametrize("size", [1, 3, 7])
def test_moments_and_gradients_are_the_formulas(size):
    draw = np.random.default_rng(0).normal
    student, teacher = 3 * draw(size=(4, 7)), 3 * draw(size=(4, 7))
    tokens = np.array([0, 3, 6, 6])
    pi, q = ([reference.softmax(row) for row in rows] for rows in (student, teacher))
    every = lambda function, *rows: [function(*row) for row in zip(*rows, strict=True)]
    made = read(student, teacher, tokens, size)
    of_view = made.teachers["t"]
    close = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12)
    close(made.student.logp[0], [np.log(p[y]) for p, y in zip(pi, tokens, strict=True)])
    close(of_view.logp[0], [np.log(p[y]) for p, y in zip(q, tokens, strict=True)])
    close(made.student.entropy[0], every(reference.entropy, pi))
    close(of_view.entropy[0], every(reference.entropy, q))
    close(of_view.reverse_kl[0], every(reference.reverse_kl, pi, q))
    close(of_view.forward_kl[0], every(reference.forward_kl, pi, q))

    gradient = functools.partial(read, student, teacher, tokens, size)
    close(gradient(lambda m: m.student.logp), np.eye(7)[tokens] - pi)
    close(
        gradient(lambda m: m.student.entropy),
        [-p * (np.log(p) + reference.entropy(p)) for p in pi],
    )
    close(
        gradient(lambda m: m.teachers["t"].reverse_kl),
        every(reference.reverse_kl_gradient, pi, q),
    )
    close(
        gradient(lambda m: m.teachers["t"].forward_kl),
        every(reference.forward_kl_gradient, pi, q),
    )


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize(
    "divergence, exact",
    [
        (JensenShannon(0.3), functools.partial(reference.jensen_shannon, beta=0.3)),
        (TotalVariation(), reference.total_variation),
    ],
    ids=["jensen_shannon", "total_variation"],
)
def test_a_divergence_of_entries_and_its_gradient_are_the_formulas(divergence, exact, size):
    draw = np.random.default_rng(0).normal
    student, teacher = 3 * draw(size=(4, 7)), 3 * draw(size=(4, 7))
    tokens, softmax = np.zeros(4, int), reference.softmax
    expected = [exact(softmax(s), softmax(t)) for s, t in zip(student, teacher, strict=True)]
    second = OfEntries("t", divergence)
    made = read(student, teacher, tokens, size, second=second)
    np.testing.assert_allclose(made.further.value[0], expected, rtol=1e-10)

    found = read(student, teacher, tokens, size, lambda m: m.further.value, second)
    step = 1e-6 * np.eye(7)
    for s, t, gradient in zip(student, teacher, found, strict=True):
        of = lambda change, s=s, t=t: exact(softmax(s + change), softmax(t))
        differences = [(of(change) - of(-change)) / 2e-6 for change in step]
        np.testing.assert_allclose(gradient, differences, atol=1e-8)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_equals_among_the_largest_agree_in_any_of_them(size):
    student = np.array([[5.0, 1.0, 5.0, 0.0], [5.0, 1.0, 5.0, 0.0], [0.0, 5.0, 1.0, 2.0]])
    teacher = np.array([[0.0, 1.0, 7.0, 7.0], [0.0, 7.0, 1.0, 7.0], [0.0, 5.0, 1.0, 5.0]])
    made = read(student, teacher, np.array([2, 1, 1]), size)
    np.testing.assert_array_equal(made.teachers["t"].top1_agreement[0], [1, 0, 1])
    np.testing.assert_array_equal(made.student.is_top[0], [1, 0, 1])


@pytest.mark.parametrize("size", [1, 2, 3])
def test_logits_far_apart_overflow_nowhere(size):
    # The first is alone on one side and without weight on the other.
    student, teacher = np.array([[-2000.0, 0.0, 0.0]]), np.array([[2000.0, 0.0, 1000.0]])
    made = read(student, teacher, np.array([0]), size)
    np.testing.assert_allclose(made.student.logp, [[-2000 - np.log(2)]])
    np.testing.assert_allclose(made.teachers["t"].logp, [[0.0]], atol=1e-12)
    np.testing.assert_allclose(made.teachers["t"].forward_kl, [[2000 + np.log(2)]])
    np.testing.assert_allclose(made.teachers["t"].reverse_kl, [[1500 - np.log(2)]])
    gradient = read(student, teacher, np.array([0]), size, lambda m: m.teachers["t"].forward_kl)
    np.testing.assert_allclose(gradient, [[-1, 0.5, 0.5]], atol=1e-12)


# On devices.


def on_a_mesh(data, tensor, chunk, method=OPD):
    """Terms with gradient on eight devices, compiled, and their arguments."""
    mesh = jax.make_mesh((data, tensor), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    of_axis = {None: None, "stage_rows": "data", "stage_entries": "tensor"}
    placed = lambda *axes: NamedSharding(mesh, PartitionSpec(*map(of_axis.get, axes)))
    put = lambda a, *axes: jax.device_put(a, placed(*axes))
    shard = lambda scored: Scored(
        put(scored.hidden, "stage_rows"), put(scored.head, None, "stage_entries")
    )
    given = problem(method)
    rest = given._replace(
        student=None,
        teachers={view: shard(scored) for view, scored in given.teachers.items()},
        tokens=put(given.tokens, "stage_rows"),
        mask=put(given.mask, "stage_rows"),
    )
    constrain = lambda x, *axes: jax.lax.with_sharding_constraint(x, placed(*axes))
    terms = functools.partial(by_tiles, method, chunk=chunk, shards=tensor, constrain=constrain)
    arguments = shard(given.student), rest
    return with_gradient(terms).lower(*arguments).compile(), arguments


def collectives_in_loops(program: str) -> list[list[str]]:
    """Of each loop of a compiled program, the collectives in its body."""
    body_of = {}
    for computation in re.split(r"\n\n", program):
        if found := re.match(r"(?:ENTRY )?%?([\w.\-]+) ", computation.strip()):
            body_of[found[1]] = computation

    def of(name):
        text = body_of[name]
        inner = re.findall(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)", text)
        kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
        own = re.findall(rf"= \S+ (?:{kinds})(?:-start)?\(.*", text)
        return own + [line for each in inner for line in of(each)]

    return [of(name) for name in re.findall(r"body=%?([\w.\-]+)", program)]


@pytest.mark.parametrize(
    ("data", "tensor", "method"),
    [(1, 8, OPD), (2, 4, OPD), (2, 4, losses.get("ar_opd"))],
    ids=short,
)
def test_a_vocabulary_over_devices_is_summed_block_by_block(data, tensor, method, monkeypatch):
    monkeypatch.setattr(tiled, "_ENTRIES", 8)
    program, arguments = on_a_mesh(data, tensor, chunk=4, method=method)
    assert_same(program(*arguments), expected(method))


@pytest.mark.parametrize(("data", "tensor"), [(1, 8), (2, 4)])
def test_nothing_travels_between_tiles(data, tensor, monkeypatch):
    monkeypatch.setattr(tiled, "_ENTRIES", 8)
    program, arguments = on_a_mesh(data, tensor, chunk=0)
    assert_same(program(*arguments), expected(OPD))
    forward, backward = collectives_in_loops(program.as_text())
    assert not forward
    # A tile of the head's gradient is a sum over the devices that split the batch.
    assert not backward if data == 1 else all("all-reduce" in line for line in backward)


# What it costs.


def compiled(method, chunk):
    given = problem(method)
    step = with_gradient(functools.partial(by_tiles, method, chunk=chunk))
    return step.lower(given.student, given).compile()


def test_no_array_has_the_size_of_all_logits(monkeypatch):
    given = problem(OPD)

    def largest(chunk, entries):
        monkeypatch.setattr(tiled, "_ENTRIES", entries)
        step = with_gradient(functools.partial(by_tiles, OPD, chunk=chunk))
        temporary = compiled(OPD, chunk).memory_analysis().temp_size_in_bytes
        return largest_array(jax.make_jaxpr(step)(given.student, given).jaxpr), temporary

    (array, memory), (whole_array, whole_memory) = largest(1, 16), largest(0, VOCABULARY)
    logits = BATCH * LENGTH * VOCABULARY
    assert whole_array == logits and array < logits / 4
    assert memory < whole_memory / 2


def products(method) -> int:
    """Matmuls of a step's program, those of a tile counted once."""
    return len(re.findall(r" dot\(| custom-call\(.*matmul", compiled(method, 4).as_text()))


def test_the_way_back_of_a_policy_gradient_makes_no_teacher_logits():
    # Student and teacher forward, the student again, and its two gradients.
    assert products(losses.get("opd_pg")) == 5
    assert products(OPD) == 6


# Who has one.


@pytest.mark.parametrize("method", CHUNKED, ids=short)
def test_settings_that_need_whole_logits_have_no_tiled_form(method):
    assert not method.tiled


def test_a_method_that_writes_its_terms_anew_has_no_tiled_form_until_it_writes_that_too():
    @dataclasses.dataclass(frozen=True)
    class Doubled(losses.OPD):
        def token_terms(self, *arguments):
            terms = super().token_terms(*arguments)
            return terms | {"divergence": 2 * terms["divergence"]}

    class Twice:
        def token_terms(self, *arguments):
            terms = super().token_terms(*arguments)
            return terms | {"divergence": 2 * terms["divergence"]}

    @dataclasses.dataclass(frozen=True)
    class Mixed(Twice, losses.OPD):
        pass

    @dataclasses.dataclass(frozen=True)
    class Renamed(losses.OPD):
        name = "renamed"

    assert not Doubled().tiled and not Mixed().tiled
    assert Renamed().tiled


def test_what_has_no_tiled_form_says_so():
    made = read(np.zeros((1, 2)), np.zeros((1, 2)), np.array([0]), 1)
    with pytest.raises(NotImplementedError, match="cr_opd has no tiled form"):
        losses.get("cr_opd").tiled_terms(made)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"chunk": -1}, "chunk=-1"),
        ({"vocabulary": VOCABULARY + 1}, "vocabulary=161, but the head of 'student' has 160"),
        ({"shards": 3}, "shards=3 must divide the vocabulary of 160"),
    ],
)
def test_refusals_say_the_cure(settings, message):
    given = problem(OPD)
    with pytest.raises(ValueError, match=message):
        by_tiles(OPD, given.student, given, **settings)
