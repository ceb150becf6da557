import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopd.losses import evaluate
from jopd.losses.cr_opd import CROPD, routing_distribution
from tests.reference import credit, enumeration, routing
from tests.reference.divergences import softmax

# Which tokens take up what the sampled one loses.

PI = np.array([0.5, 0.28, 0.1, 0.08, 0.0395, 0.0005])
Q = np.array([0.1, 0.3, 0.2, 0.15, 0.1, 0.15])
SETTINGS = {"teacher_top_k": 6, "student_top_k": 5, "reachable": 0.05}


CASES = [
    (0, {}, [1, 2, 3, 4], (1, 0)),  # 5 is out of the student's reach
    (
        2,
        {},
        [1, 3, 4],
        (1, 0),
    ),  # the sampled token is never its own heir, nor 0, of which q has less
    (0, {"student_top_k": 1, "reachable": 0.09}, [1, 2], (1, 0)),  # by probability alone
    (0, {"teacher_top_k": 2}, [1, 2], (1, 0)),
    (
        0,
        {"teacher_top_k": 2, "teacher_reachable": 0.125},
        [1, 2, 3],
        (1, 0),
    ),  # 5 has that much too, but see above
    (0, {"student_top_k": 6}, [1, 2, 3, 4, 5], (1, 0)),
    (0, {"teacher_power": 0.5, "student_power": 2.0}, [1, 2, 3, 4], (0.5, 2)),
    (0, {"teacher_power": 0.0}, [1, 2, 3, 4], (0, 0)),
    (1, {"teacher_top_k": 1}, [], (1, 0)),
]


def test_candidates_and_their_shares_by_hand():
    logp, logq = (jnp.log(jnp.asarray(p, jnp.float32))[None, None] for p in (PI, Q))
    found = jax.jit(
        lambda: [
            routing_distribution(logp, logq, jnp.asarray([[sampled]]), **{**SETTINGS, **settings})
            for sampled, settings, _, _ in CASES
        ]
    )()
    for (rho, nonempty), (sampled, settings, members, powers) in zip(found, CASES, strict=True):
        expected = np.zeros(6)
        expected[members] = Q[members] ** powers[0] * PI[members] ** powers[1]
        expected /= expected.sum() or 1
        np.testing.assert_allclose(rho[0, 0], expected, rtol=1e-5, err_msg=f"{sampled} {settings}")
        assert nonempty[0, 0] == bool(members)


@pytest.mark.parametrize(
    "settings",
    [{}, {"teacher_top_k": 4, "student_top_k": 6, "teacher_reachable": 0.03, "student_power": 0.5}],
    ids=str,
)
def test_routes_are_the_sets_in_the_definition(settings):
    rows, vocabulary = 40, 80
    student, teacher = 3 * np.random.default_rng(0).normal(size=(2, rows, vocabulary))
    student[:, 7], teacher[:, 9] = -np.inf, -np.inf
    teacher[0] = student[0]
    sampled = np.random.default_rng(1).integers(vocabulary, size=rows)
    with jax.enable_x64(True):
        arrays = (jax.nn.log_softmax(jnp.asarray(a)) for a in (student, teacher))
        function = jax.jit(functools.partial(routing_distribution, **settings))
        rho, nonempty = jax.device_get(function(*arrays, jnp.asarray(sampled)))
    limits = {
        "teacher_top_k": 32,
        "student_top_k": 64,
        "reachable": 1e-3,
        "teacher_reachable": None,
    }
    limits |= {name: value for name, value in settings.items() if name in limits}
    for i in range(rows):
        pi, q = softmax(student[i]), softmax(teacher[i])
        members = routing.candidates(pi, q, sampled[i], **limits)
        expected = routing.routing_distribution(
            pi, q, members, student_power=settings.get("student_power", 0.0)
        )
        np.testing.assert_allclose(rho[i], expected, atol=1e-12)
        assert nonempty[i] == bool(members)
    assert not nonempty[0] and nonempty.sum() > 30


def test_a_route_has_no_gradient_and_no_nan():
    logits = jnp.asarray([[0.0, 1.0, -jnp.inf, 2.0], [0.0, 1.0, -jnp.inf, 2.0]])
    teacher = jnp.asarray([[1.0, 0.0, 3.0, -jnp.inf], [0.0, 1.0, -jnp.inf, 2.0]])

    def squares(student, teacher):
        rho, _ = routing_distribution(
            jax.nn.log_softmax(student),
            jax.nn.log_softmax(teacher),
            jnp.asarray([3, 3]),
            student_power=0.5,
        )
        return jnp.sum(rho**2), rho

    (_, rho), gradients = jax.jit(jax.value_and_grad(squares, argnums=(0, 1), has_aux=True))(
        logits, teacher
    )
    np.testing.assert_array_equal(rho, [[1, 0, 0, 0], [0, 0, 0, 0]])
    assert not any(gradient.any() for gradient in gradients)


# The gradient on the logits of one token.

VOCABULARY = 7
STUDENT, TEACHER = np.random.default_rng(5).normal(size=(2, VOCABULARY)) * 1.5
LIMITS = {"teacher_top_k": 5, "student_top_k": 6, "reachable": 1e-3}


def on_logits(methods, student, teacher):
    """For each method, gradient and metrics of each token's own loss, each token being sampled
    once, one a row.
    """
    with jax.enable_x64(True):
        rows = len(student)
        spread = lambda row: jnp.broadcast_to(jnp.asarray(row, jnp.float64), (rows, 1, rows))
        tokens, mask, view = (
            jnp.arange(rows)[:, None],
            jnp.ones((rows, 1), bool),
            {"teacher": spread(teacher)},
        )
        loss = lambda method: lambda z: evaluate(method, z, view, tokens, mask)
        every = jax.jit(lambda z: [jax.grad(loss(method), has_aux=True)(z) for method in methods])
        # The loss is a mean over rows.
        return [
            (rows * gradient[:, 0], metrics)
            for gradient, metrics in jax.device_get(every(spread(student)))
        ]


def test_the_identity_on_the_logits():
    settings = list(itertools.product([0.0, 0.5, 1.0], [5.0, 0.3]))
    methods = [CROPD(routing_weight=eta, routing_clip=clip, **LIMITS) for eta, clip in settings]
    pi, q = softmax(STUDENT), softmax(TEACHER)
    for (eta, clip), (gradient, metrics) in zip(
        settings, on_logits(methods, STUDENT, TEACHER), strict=True
    ):
        suppressed, sizes = 0, []
        for y in range(VOCABULARY):
            advantage = np.log(q[y]) - np.log(pi[y])
            members = routing.candidates(pi, q, y, **LIMITS)
            rho = routing.routing_distribution(pi, q, members)
            if advantage >= 0:
                np.testing.assert_allclose(
                    gradient[y], -advantage * (np.eye(VOCABULARY)[y] - pi), atol=1e-10
                )
                continue
            suppressed, sizes = suppressed + 1, [*sizes, len(members)]
            if -advantage <= clip:
                expected = -advantage * (np.eye(VOCABULARY)[y] - (1 - eta) * pi - eta * rho)
                if eta == 1:  # all that y loses goes to the candidates
                    assert abs(gradient[y, [y, *members]].sum()) < 1e-12
                    np.testing.assert_allclose(np.delete(gradient[y], [y, *members]), 0, atol=1e-12)
            else:
                expected = -advantage * (np.eye(VOCABULARY)[y] - pi) + eta * clip * (pi - rho)
            np.testing.assert_allclose(gradient[y], expected, atol=1e-10)
        assert 2 <= suppressed < VOCABULARY
        np.testing.assert_allclose(metrics["suppressed"], suppressed / VOCABULARY)
        np.testing.assert_allclose(metrics["route_candidates"], np.mean(sizes))
        assert metrics["route_nonempty"] == 1


def test_an_empty_route_suppresses_or_abstains():
    # What the teacher wants is token 0, and with the student's first alone in reach, and 0 below
    # .001, it is not to be had.
    pi, q = np.array([0.0005, 0.6, 0.3995]), np.array([0.5, 0.3, 0.2])
    methods = [CROPD(empty_route=empty, student_top_k=1) for empty in ("suppress", "abstain")]
    for method, (gradient, metrics) in zip(
        methods, on_logits(methods, np.log(pi), np.log(q)), strict=True
    ):
        np.testing.assert_allclose(
            gradient[0], -np.log(q[0] / pi[0]) * ([1, 0, 0] - pi), atol=1e-10
        )
        for y in (1, 2):
            plain = -np.log(q[y] / pi[y]) * (np.eye(3)[y] - pi)
            np.testing.assert_allclose(
                gradient[y], plain if method.empty_route == "suppress" else 0, atol=1e-10
            )
        assert metrics["route_nonempty"] == 0 and metrics["route_teacher_mass"] == 0


# On the enumerable world, with every credit.

WORLD = enumeration.world()
TABLE, TEACHERS = np.random.default_rng(6).normal(size=(2, WORLD.inner, enumeration.TOKENS))
LOGP, LOGQ = enumeration.log_softmax(TABLE), enumeration.log_softmax(TEACHERS)
REWARDS, LENGTHS = (LOGQ - LOGP)[WORLD.states, WORLD.tokens], WORLD.mask.sum(axis=1)
KL = (np.exp(LOGP) * (LOGP - LOGQ)).sum(axis=1)
VALUES = np.random.default_rng(7).normal(size=len(WORLD.prefixes))
CRITIC = {
    "values": VALUES[WORLD.states],
    "bootstrap": VALUES[WORLD.last_states][:, None],
    "truncated": WORLD.truncated[:, None].astype(float),
}


@pytest.mark.parametrize(
    "settings, advantages, inputs",
    [
        ({"baseline": "kl"}, REWARDS + KL[WORLD.states], {}),
        (
            {"credit": "return_to_go"},
            credit.by_row(lambda r: credit.return_to_go(r, 1), LENGTHS, REWARDS),
            {},
        ),
        (
            {"credit": "gae", "discount": 0.9, "gae_lambda": 0.5},
            credit.by_row(
                lambda r, v, b: credit.generalized_advantage(r, v, 0.9, 0.5, b),
                LENGTHS,
                REWARDS,
                VALUES[WORLD.states],
                np.where(WORLD.truncated, VALUES[WORLD.last_states], 0),
            ),
            CRITIC,
        ),
    ],
    ids=["baseline", "return-to-go", "gae"],
)
def test_any_credit_can_be_routed(settings, advantages, inputs):
    found = enumeration.gradient(CROPD(**settings), WORLD, TABLE, TEACHERS, **inputs)
    expected = enumeration.sampled_gradient(WORLD, TABLE, advantages)
    for row, t in zip(*np.nonzero(WORLD.mask & (advantages < 0)), strict=True):
        state, pi, q = (
            WORLD.states[row, t],
            *(np.exp(a[WORLD.states[row, t]]) for a in (LOGP, LOGQ)),
        )
        if members := routing.candidates(pi, q, WORLD.tokens[row, t], 32, 64, 1e-3):
            weight = min(-advantages[row, t], 5.0)
            expected[state] += weight * (pi - routing.routing_distribution(pi, q, members))
    count = WORLD.mask.sum() if "credit" not in settings else len(WORLD.tokens)
    np.testing.assert_allclose(found, expected / count, atol=1e-10)


def test_routing_is_no_estimate_of_the_reverse_kls_gradient():
    length = enumeration.expected_length(WORLD, TABLE)
    found = enumeration.expected_gradient(CROPD(), WORLD, TABLE, TEACHERS, per_row=length)
    assert np.abs(found - enumeration.fixed_state_gradient(WORLD, TABLE, TEACHERS)).max() > 0.01


# Settings.


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"credit": "gea"}, "unknown credit 'gea': did you mean 'gae'"),
        ({"credit": "kl"}, "of the state alone"),
        ({"discount": 0.9}, "discount=0.9 has nothing to act on with credit='immediate'"),
        (
            {"gae_lambda": 0.9},
            "gae_lambda=0.9 has nothing to act on with credit='immediate': set credit to 'gae'",
        ),
        (
            {"credit": "gae", "baseline": "kl"},
            "baseline='kl' with credit='gae', whose critic is the baseline",
        ),
        ({"credit": "gae", "gae_lambda": 2.0}, r"gae_lambda=2.0 must lie in \[0, 1\]"),
        ({"empty_route": "drop"}, "unknown empty_route 'drop'"),
        ({"teacher_top_k": 0}, "teacher_top_k=0 must be at least 1"),
        ({"routing_weight": -1.0}, "routing_weight=-1.0 must be 0 or more"),
        ({"routing_clip": 0.0}, "routing_clip=0.0 must be positive.*routing_weight"),
        ({"reachable": 0.0}, r"reachable=0.0 must lie in \(0, 1\]"),
        ({"teacher_reachable": 1.5}, r"teacher_reachable=1.5 must lie in \(0, 1\]"),
    ],
)
def test_bad_settings_are_refused_with_the_cure(settings, message, types_unchecked):
    with pytest.raises(ValueError, match=message):
        CROPD(**settings)


def test_it_says_what_it_reads_and_what_it_is():
    assert (
        CROPD().inputs == ()
        and CROPD().module_inputs == ()
        and CROPD().init_modules(3, jax.random.key(0)) == {}
    )
    critic = CROPD(credit="gae", discount=0.9)
    assert critic.inputs == ("truncated",) and critic.module_inputs == ("values", "bootstrap")
    assert set(critic.init_modules(3, jax.random.key(0))) == {"value_weights", "value_bias"}
    assert not critic.vanishes_at_teacher and CROPD().vanishes_at_teacher
    assert critic.variables().credit == "GAE, discount 0.9, lambda 0.95, critic"
    assert (
        CROPD(empty_route="abstain").variables().routing
        == "counterfactual, weight 1, clip 5, else abstain"
    )
