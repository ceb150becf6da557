"""Distances between the teacher's and the student's next-token distributions, q and pi.

Everything takes normalised log-probabilities, student first, on any leading axes and reduces the
last; results have the inputs' type. An entry of no weight adds nothing to value or gradient, even
where log-probabilities are -inf; an entry that has weight where the other distribution has none
makes a KL infinite, as it should. Gradients flow into both
arguments: detach the teacher.

    forward_kl          sum_v q (log q - log pi)         covers the teacher's modes
    reverse_kl          sum_v pi (log pi - log q)        seeks one, the usual choice on-policy
    jensen_shannon      beta KL(q || m) + (1 - beta) KL(pi || m),  m = beta q + (1 - beta) pi
    total_variation     1/2 sum_v |q - pi|
    k1, k2, k3          d, d^2 / 2, e^-d - 1 + d         d = log pi(y) - log q(y), y the token drawn

Beta belongs to the Jensen-Shannon divergence alone and means what it means in the GKD paper
(Agarwal et al., arXiv:2306.13649, grade P); other systems let it run to the KLs at 0 and 1, where
the divergence itself vanishes.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jopd.losses.checks import check_known
from jopd.losses.types import Logits, Moments, Terms, Views
from jopd.losses.vocabulary import in_top_k, log_prob_of, log_softmax

Name = Literal["reverse_kl", "forward_kl", "jensen_shannon", "total_variation", "k2", "k3"]
Divergence = Callable[
    [Float[Array, "*n V"], Float[Array, "*n V"], Int[Array, "*n"]], Float[Array, "*n"]
]


def forward_kl(
    student_logp: Float[Array, "*n V"],
    teacher_logp: Float[Array, "*n V"],
    *,
    k: int | None = None,
    support: str = "teacher",
    tail: str = "bucket",
) -> Float[Array, "*n"]:
    """KL(q || pi), in full or on a top-k support.

    >>> pi, q = jnp.log(jnp.array([0.25, 0.75])), jnp.log(jnp.array([0.5, 0.5]))
    >>> print(f"{forward_kl(pi, q):.4f}")  # log(4/3) / 2
    0.1438

    Args:
      student_logp: log pi.
      teacher_logp: log q.
      k: compare the `k` likeliest tokens only; None, or V and more, compares all.
      support: whose likeliest, "teacher" or "student".
      tail: "bucket" makes the other tokens one more outcome, which keeps the value between 0 and
        the full KL; "renormalise" leaves them out of both distributions, so that nothing holds the
        student to the support.

    Raises:
      ValueError: k < 1, an unknown support or tail, or a renormalised k of 1, which is identically
        0.
    """
    return _kl(
        teacher_logp,
        student_logp,
        {"teacher": teacher_logp, "student": student_logp},
        k,
        support,
        tail,
    )


def reverse_kl(
    student_logp: Float[Array, "*n V"],
    teacher_logp: Float[Array, "*n V"],
    *,
    k: int | None = None,
    support: str = "teacher",
    tail: str = "bucket",
) -> Float[Array, "*n"]:
    """KL(pi || q), in full or on a top-k support; arguments and errors are `forward_kl`'s.

    >>> pi, q = jnp.log(jnp.array([0.25, 0.75])), jnp.log(jnp.array([0.5, 0.5]))
    >>> print(f"{reverse_kl(pi, q):.4f}")  # log(27/16) / 4
    0.1308
    """
    return _kl(
        student_logp,
        teacher_logp,
        {"teacher": teacher_logp, "student": student_logp},
        k,
        support,
        tail,
    )


def jensen_shannon(
    student_logp: Float[Array, "*n V"], teacher_logp: Float[Array, "*n V"], *, beta: float
) -> Float[Array, "*n"]:
    """beta KL(q || m) + (1 - beta) KL(pi || m), m = beta q + (1 - beta) pi. At most log 2, at beta
    = 1/2.

    >>> pi, q = jnp.log(jnp.array([0.25, 0.75])), jnp.log(jnp.array([0.5, 0.5]))
    >>> print(f"{jensen_shannon(pi, q, beta=0.5):.4f}")
    0.0338

    Divided by beta it tends to the forward KL as beta -> 0, and divided by 1 - beta to the reverse
    KL as beta -> 1.

    Raises:
      ValueError: beta outside (0, 1).
    """
    _check_beta(beta)

    return jnp.sum(JensenShannon(beta).value(student_logp, teacher_logp), axis=-1)


def total_variation(
    student_logp: Float[Array, "*n V"], teacher_logp: Float[Array, "*n V"]
) -> Float[Array, "*n"]:
    """1/2 sum_v |q - pi|, in [0, 1].

    >>> pi, q = jnp.log(jnp.array([0.25, 0.75])), jnp.log(jnp.array([0.5, 0.5]))
    >>> print(f"{total_variation(pi, q):.2f}")
    0.25
    """
    return jnp.sum(TotalVariation().value(student_logp, teacher_logp), axis=-1)


@dataclasses.dataclass(frozen=True)
class JensenShannon:
    """The entries that sum to `jensen_shannon`.

    >>> pi, q = jnp.log(jnp.array([0.25, 0.75])), jnp.log(jnp.array([0.5, 0.5]))
    >>> print(f"{JensenShannon(0.5).value(pi, q).sum():.4f}")
    0.0338
    """

    beta: float

    def value(
        self, student_logp: Float[Array, "*n"], teacher_logp: Float[Array, "*n"]
    ) -> Float[Array, "*n"]:
        of = lambda logp, other, share: share * jnp.exp(logp) * _over_blend(logp, other, share)
        return of(teacher_logp, student_logp, self.beta) + of(
            student_logp, teacher_logp, 1 - self.beta
        )

    def slope(
        self, student_logp: Float[Array, "*n"], teacher_logp: Float[Array, "*n"]
    ) -> Float[Array, "*n"]:
        """The derivative of an entry in pi."""
        share = 1 - self.beta
        return share * _over_blend(student_logp, teacher_logp, share)


@dataclasses.dataclass(frozen=True)
class TotalVariation:
    """The entries that sum to `total_variation`.

    >>> pi, q = jnp.log(jnp.array([0.25, 0.75])), jnp.log(jnp.array([0.5, 0.5]))
    >>> print(TotalVariation().value(pi, q))
    [0.125 0.125]
    """

    def value(
        self, student_logp: Float[Array, "*n"], teacher_logp: Float[Array, "*n"]
    ) -> Float[Array, "*n"]:
        gap = jnp.abs(jnp.exp(teacher_logp) - jnp.exp(student_logp)) / 2
        return jnp.where(_differ(student_logp, teacher_logp), gap, 0)

    def slope(
        self, student_logp: Float[Array, "*n"], teacher_logp: Float[Array, "*n"]
    ) -> Float[Array, "*n"]:
        """The derivative of an entry in pi."""
        sign = jnp.sign(student_logp - teacher_logp) / 2
        return jnp.where(_differ(student_logp, teacher_logp), sign, 0)


def _over_blend(logp, other_logp, share):
    """log(p / m) for m = share p + (1 - share) other, from the difference of the two
    log-probabilities, so that it is exact where they are close.
    """
    gap = _gap(logp, other_logp)
    near = jnp.abs(gap) < 1
    # Exactly 0 at a gap of 0; far from it expm1 would overflow.
    close = jnp.log1p((1 - share) * jnp.expm1(jnp.where(near, -gap, 0)))
    return -jnp.where(near, close, jnp.logaddexp(math.log(share), math.log1p(-share) - gap))


def _differ(logp, other_logp):
    """By more than rounding: a gradient that jumps where the two meet would be noise of full
    size.
    """
    return jnp.abs(other_logp - logp) > 64 * jnp.finfo(logp.dtype).eps


def k1(student_logp: Float[Array, "*n"], teacher_logp: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Unbiased estimate of the reverse KL from a sampled token's two log-probabilities; its own
    expected gradient is 0.

    >>> print(f"{k1(jnp.log(0.25), jnp.log(0.5)):.4f}")  # -log 2
    -0.6931

    To learn from it, give it to a policy gradient. The names are Schulman's ("Approximating KL
    divergence", 2020).
    """
    return student_logp - teacher_logp


def k2(student_logp: Float[Array, "*n"], teacher_logp: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Biased, low-variance estimate of the reverse KL; its own expected gradient is the reverse
    KL's.

    >>> print(f"{k2(jnp.log(0.25), jnp.log(0.5)):.4f}")  # log(2)^2 / 2
    0.2402
    """
    return jnp.square(student_logp - teacher_logp) / 2


def k3(student_logp: Float[Array, "*n"], teacher_logp: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Unbiased, never negative estimate of the reverse KL; its own expected gradient is the forward
    KL's.

    >>> print(f"{k3(jnp.log(0.25), jnp.log(0.5)):.4f}")  # 2 - 1 - log 2
    0.3069
    """
    gap = student_logp - teacher_logp
    return jnp.expm1(-gap) + gap


def kl_entries(
    logp: Float[Array, "*n V"], other_logp: Float[Array, "*n V"]
) -> Float[Array, "*n V"]:
    """p (log p - log other), the entries that sum to KL(p || other); single ones may be negative.

    >>> pi, q = jnp.log(jnp.array([0.25, 0.75])), jnp.log(jnp.array([0.5, 0.5]))
    >>> print(kl_entries(q, pi).round(3))  # log(2) / 2, log(2/3) / 2
    [ 0.347 -0.203]
    """
    return jnp.exp(logp) * _gap(logp, other_logp)


def entropy(logp: Float[Array, "*n V"]) -> Float[Array, "*n"]:
    """-sum_v p log p, in nats.

    >>> print(f"{entropy(jnp.log(jnp.array([0.5, 0.25, 0.25]))):.4f}")  # log(2) 3/2
    1.0397
    """
    return -jnp.sum(jnp.exp(logp) * _present(logp, logp), axis=-1)


def choose(
    name: str,
    *,
    beta: float | None = None,
    k: int | None = None,
    support: str = "teacher",
    tail: str = "bucket",
) -> Divergence:
    """The divergence of that name as a function of student log-probs, teacher log-probs and tokens.

    >>> pi, q = jnp.log(jnp.array([0.25, 0.75])), jnp.log(jnp.array([0.5, 0.5]))
    >>> print(f"{choose('total_variation')(pi, q, jnp.array(0)):.2f}")
    0.25

    Args:
      name: one of `Name`.
      beta: for "jensen_shannon"; None is 1/2.
      k, support, tail: for the two KLs, as in `forward_kl`.

    Raises:
      ValueError: an unknown name, k1, a bad setting, or one that the chosen divergence has no use
        for.
    """
    if name == "k1":
        raise ValueError(
            "divergence='k1' teaches nothing, as its expected gradient is 0: use --method opd_pg, "
            "or k2"
        )
    check_known(
        "divergence",
        [name],
        ("reverse_kl", "forward_kl", "jensen_shannon", "total_variation", "k2", "k3"),
    )
    if beta is not None and name != "jensen_shannon":
        raise ValueError(
            f"beta={beta} is a setting of jensen_shannon and does nothing to {name}: leave it out"
        )
    if k is not None and name not in ("reverse_kl", "forward_kl"):
        raise ValueError(
            f"top_k={k} is a support of reverse_kl and forward_kl and does nothing to {name}: "
            "leave it out"
        )
    _check_support(k, support, tail)
    if k is None and (support, tail) != ("teacher", "bucket"):
        raise ValueError(
            f"support={support!r} and tail={tail!r} act on a top-k only: set top_k, or leave them "
            "out"
        )
    beta = 0.5 if beta is None else beta
    _check_beta(beta)
    if name in ("k2", "k3"):
        sampled = {"k2": k2, "k3": k3}[name]
        return lambda student, teacher, tokens: sampled(
            log_prob_of(student, tokens), log_prob_of(teacher, tokens)
        )
    return {
        "reverse_kl": lambda student, teacher, tokens: reverse_kl(
            student, teacher, k=k, support=support, tail=tail
        ),
        "forward_kl": lambda student, teacher, tokens: forward_kl(
            student, teacher, k=k, support=support, tail=tail
        ),
        "jensen_shannon": lambda student, teacher, tokens: jensen_shannon(
            student, teacher, beta=beta
        ),
        "total_variation": lambda student, teacher, tokens: total_variation(student, teacher),
    }[name]


def comparison(student_logits: Float[Array, "*n V"], teacher_logits: Float[Array, "*n V"]) -> Terms:
    """What every method logs about a student and a teacher: `kl` (exact reverse KL), both
    entropies, `top1_agreement`.

    >>> logged = comparison(*jnp.log(jnp.array([[0.25, 0.75], [0.75, 0.25]])))
    >>> print({name: round(float(value), 3) for name, value in logged.items()})
    {'kl': 0.549, 'student_entropy': 0.562, 'teacher_entropy': 0.562, 'top1_agreement': 0.0}

    At temperature 1 whatever the loss's, so that runs compare; without gradient, so that it costs a
    forward pass alone.
    """
    student_logits, teacher_logits = jax.lax.stop_gradient((student_logits, teacher_logits))
    student, teacher = log_softmax(student_logits), log_softmax(teacher_logits)
    first = lambda logits: logits == jnp.max(logits, axis=-1, keepdims=True)
    return {
        "kl": reverse_kl(student, teacher),
        "student_entropy": entropy(student),
        "teacher_entropy": entropy(teacher),
        "top1_agreement": jnp.any(first(student_logits) & first(teacher_logits), axis=-1).astype(
            student.dtype
        ),
    }


def comparison_of(moments: Moments, view: str) -> Terms:
    """`comparison` of the student and a view, from sums over the vocabulary.

    >>> from jopd.losses.types import Compared, Reading
    >>> one = jnp.ones(())
    >>> moments = Moments(Reading(-one, one, one), {"teacher": Compared(-one, one, one, one, one)})
    >>> print(comparison_of(moments, "teacher")["kl"])
    1.0
    """
    of_view = moments.teachers[view]
    compared = {
        "kl": of_view.reverse_kl,
        "student_entropy": moments.student.entropy,
        "teacher_entropy": of_view.entropy,
        "top1_agreement": of_view.top1_agreement,
    }
    return jax.lax.stop_gradient(compared)


@dataclasses.dataclass(frozen=True)
class OfEntries:
    """Such a divergence between the student and a view, as a second pass over the vocabulary.

    >>> pi, q = jnp.log(jnp.array([0.25, 0.75])), jnp.log(jnp.array([0.5, 0.5]))
    >>> entries = OfEntries("teacher", TotalVariation()).entries(pi, {"teacher": q})
    >>> print(f"{entries['value'].sum():.2f}")
    0.25
    """

    view: str
    divergence: JensenShannon | TotalVariation

    @property
    def views(self) -> tuple[str, ...]:
        return (self.view,)

    def entries(self, student_logp: Logits, teacher_logp: Views) -> dict[str, Logits]:
        both = student_logp, teacher_logp[self.view]
        slope = jnp.exp(student_logp) * self.divergence.slope(*both)
        return {"value": self.divergence.value(*both), "slope": slope}

    def value(self, sums: Mapping[str, Float[Array, "*n"]]) -> Float[Array, "*n"]:
        return sums["value"]

    def slope(
        self, student_logp: Logits, teacher_logp: Views, sums: Mapping[str, Float[Array, "*#n 1"]]
    ) -> Logits:
        slope = self.divergence.slope(student_logp, teacher_logp[self.view])
        return jnp.exp(student_logp) * (slope - sums["slope"])


def second_pass_of(name: str, beta: float | None, view: str) -> OfEntries | None:
    """The divergence of that name between the student and a view, if it needs one.

    >>> second_pass_of("total_variation", None, "teacher").views, second_pass_of("k2", None, "")
    (('teacher',), None)
    """
    found = {
        "jensen_shannon": JensenShannon(0.5 if beta is None else beta),
        "total_variation": TotalVariation(),
    }
    return OfEntries(view, found[name]) if name in found else None


def chosen_of(name: str, moments: Moments, view: str) -> Float[Array, "*n"]:
    """The divergence of that name between the student and a view, from sums over the vocabulary,
    those of `second_pass_of` among them.

    >>> from jopd.losses.types import Compared, Reading
    >>> one = jnp.ones(())
    >>> moments = Moments(Reading(-one, one, one), {"teacher": Compared(-one, one, one, one, one)})
    >>> print(chosen_of("k2", moments, "teacher"))
    0.0

    Args:
      name: one of `Name`.
    """
    student, of_view = moments.student, moments.teachers[view]
    sampled = {"k2": k2, "k3": k3}
    if name in sampled:
        return sampled[name](student.logp, of_view.logp)
    whole = {"reverse_kl": of_view.reverse_kl, "forward_kl": of_view.forward_kl}
    if name in whole:
        return whole[name]
    assert moments.further is not None, f"{name} is a second pass, which nobody has asked for"
    return moments.further.value


def _present(logp, values):
    """The values where `logp` has weight, 0 elsewhere."""
    return jnp.where(jnp.exp(logp) > 0, values, 0)


def _gap(logp, other_logp):
    return _present(logp, logp - other_logp)


def _full_kl(logp, other_logp):
    return jnp.sum(kl_entries(logp, other_logp), axis=-1)


def _kl(logp, other_logp, rankings, k, support, tail):
    _check_support(k, support, tail)
    if k is None or k >= logp.shape[-1]:
        return _full_kl(logp, other_logp)
    inside = in_top_k(rankings[support], k)
    if tail == "renormalise":
        return _full_kl(_restricted(logp, inside), _restricted(other_logp, inside))
    rest, other_rest = _log_mass(logp, ~inside), _log_mass(other_logp, ~inside)
    return _full_kl(jnp.where(inside, logp, -jnp.inf), other_logp) + jnp.exp(rest) * _gap(
        rest, other_rest
    )


def _restricted(logp, inside):
    """Log-probabilities renormalised over the entries `inside`, -inf for the others, and for all if
    none has mass.
    """
    mass = _log_mass(logp, inside)[..., None]
    return jnp.where(inside, logp - jnp.where(mass > -jnp.inf, mass, 0), -jnp.inf)


def _log_mass(logp: Float[Array, "*n V"], where: Bool[Array, "*n V"]) -> Float[Array, "*n"]:
    """Log of the entries' total probability, a logsumexp as 1 - sum would cancel; -inf, with no
    gradient, if none.
    """
    some = jnp.any(where & (logp > -jnp.inf), axis=-1)
    filled = jnp.where(some[..., None], jnp.where(where, logp, -jnp.inf), 0)
    return jnp.where(some, jax.nn.logsumexp(filled, axis=-1), -jnp.inf)


def _check_support(k, support, tail):
    check_known("support", [support], ("teacher", "student"))
    check_known("tail", [tail], ("bucket", "renormalise"))
    if k is not None and k < 1:
        raise ValueError(f"top_k={k} must be at least 1; None compares the whole vocabulary")
    if k == 1 and tail == "renormalise":
        raise ValueError(
            "top_k=1 with tail='renormalise' is identically 0, as one token renormalised is "
            "certain: use tail='bucket'"
        )


def _check_beta(beta):
    if not 0 < beta < 1:
        raise ValueError(
            f"beta={beta} must lie in (0, 1): at 0 and 1 jensen_shannon vanishes; its limits there "
            "are the divergences forward_kl (beta -> 0) and reverse_kl (beta -> 1)"
        )
