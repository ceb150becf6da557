"""What any method may be steadied with: weights that silence tokens, and a pull towards the initial
model.

    weight_t = 1[y_t not in mask_tokens] 1[above < H(q_t) < below] 2^(-t / half_life)
               times the input `weight`
    loss     = the method's under weight_t  +  kl_to_initial token_mean( KL(pi_t || initial_t) )

Weights are factors on a token's loss, and on its count where the method divides by one; they are
not the mask, so that returns, cumulative sums and windows still see every token. The pull towards
the initial model is not weighted: it holds where the gates are shut too, which is where the teacher
has nothing to say. A method's further streams of sequences are left as they are. The entropy and
the pull are those at temperature 1, whatever the method's.

The other stabilisers of the survey are elsewhere: the log-ratio clip and the task's reward are
settings of the policy-gradient methods (`log_ratio_clip`, `reward_weight`), a frozen or averaged
teacher is the `teacher_update` of the methods that may have one, and a cold start is a run of
`--method sft` first, whose saved student the next run names as its `--student.model`.

Source: the survey's list of stabilisers, arXiv:2606.22793 (P); their formulas are a reconstruction:
it states none.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jopd.losses import base
from jopd.losses.divergences import entropy, reverse_kl
from jopd.losses.vocabulary import log_softmax

# Names that no method's own terms and inputs have.
_GATE, _KL = "stabiliser_gate", "stabiliser_kl"


@dataclasses.dataclass(frozen=True)
class Stabilisers:
    """Weights on tokens, and a pull towards the initial model; all off by default.

    Attributes:
      mask_tokens: ids of tokens without a loss, such as those that student and teacher use
        differently.
      position_half_life: after so many tokens a token counts half; off where left out.
      teacher_entropy_below: only tokens count where the teacher's entropy is below so many nats;
        off where left out.
      teacher_entropy_above: only tokens count where the teacher's entropy is above so many nats;
        off where left out. The teacher's first view is the one that is looked at.
      kl_to_initial: coefficient of KL(student || initial model), over the whole vocabulary at every
        token.
    """

    mask_tokens: tuple[int, ...] = ()
    position_half_life: float | None = None
    teacher_entropy_below: float | None = None
    teacher_entropy_above: float | None = None
    kl_to_initial: float = 0.0

    def __post_init__(self):
        if any(token < 0 for token in self.mask_tokens):
            raise ValueError(f"mask_tokens={self.mask_tokens} must be token ids, 0 and up")
        if self.position_half_life is not None and not self.position_half_life > 0:
            raise ValueError(
                f"position_half_life={self.position_half_life} must be positive, in tokens; None "
                "is off"
            )
        below, above = self.teacher_entropy_below, self.teacher_entropy_above
        if above is not None and not above >= 0:
            raise ValueError(
                f"teacher_entropy_above={above} must not be negative, in nats; None is off"
            )
        if below is not None and not below > (above or 0):
            raise ValueError(
                f"teacher_entropy_below={below} with teacher_entropy_above={above} keeps no token: "
                f"set teacher_entropy_below above {above or 0}, or leave it out"
            )
        if not 0 <= self.kl_to_initial < math.inf:
            raise ValueError(
                f"kl_to_initial={self.kl_to_initial} must not be negative; 0 is off, 0.05 a mild "
                "pull"
            )

    @property
    def by_entropy(self) -> bool:
        return self.teacher_entropy_below is not None or self.teacher_entropy_above is not None

    @property
    def gated(self) -> bool:
        """Whether tokens are let through or not, which the scoring pass has to say."""
        return bool(self.mask_tokens) or self.by_entropy


def stabilised(method: base.Method, stabilisers: Stabilisers) -> base.Method:
    """The method under these stabilisers; the method itself if all are off.

    >>> from jopd import losses
    >>> stabilised(losses.get("opd"), Stabilisers(kl_to_initial=0.05)).views
    ('teacher', 'initial')

    Raises:
      ValueError: a gate on the teacher's entropy for a method without a teacher.
    """
    return method if stabilisers == Stabilisers() else Stabilised(method, stabilisers)


def _passed_on(name: str) -> Any:
    return property(lambda self: getattr(self.method, name), doc=f"The method's own `{name}`.")


@dataclasses.dataclass(frozen=True)
class Stabilised(base.Method):
    """A method under stabilisers: everything is the method's own but what is written out here."""

    method: base.Method
    stabilisers: Stabilisers

    name = _passed_on("name")
    source = _passed_on("source")
    extras = _passed_on("extras")
    inputs = _passed_on("inputs")
    module_inputs = _passed_on("module_inputs")
    why_not_zero = _passed_on("why_not_zero")
    on_policy_share = _passed_on("on_policy_share")
    updates = _passed_on("updates")
    teacher_update = _passed_on("teacher_update")
    guided_share = _passed_on("guided_share")
    guided_writer = _passed_on("guided_writer")
    modules_learning_rate = _passed_on("modules_learning_rate")
    near_future = _passed_on("near_future")
    streams = _passed_on("streams")
    route = _passed_on("route")
    shown = _passed_on("shown")
    aggregation = _passed_on("aggregation")
    one_model = _passed_on("one_model")
    sampled_gradient = _passed_on("sampled_gradient")
    alerts = _passed_on("alerts")
    tiled = _passed_on("tiled")
    second_pass = _passed_on("second_pass")

    @property
    def ordered(self) -> bool:
        return self.method.ordered or self.stabilisers.position_half_life is not None

    def __post_init__(self):
        if self.stabilisers.by_entropy and not any(
            view != base.INITIAL for view in self.method.views
        ):
            raise ValueError(
                f"method {self.name} has no teacher whose entropy could be looked at: "
                "leave teacher_entropy_below and teacher_entropy_above out"
            )

    @property
    def views(self) -> tuple[str, ...]:
        initial = (
            (base.INITIAL,)
            if self.stabilisers.kl_to_initial and base.INITIAL not in self.method.views
            else ()
        )
        return self.method.views + initial

    def init_modules(self, width: int, key: PRNGKeyArray) -> dict[str, Array]:
        return self.method.init_modules(width, key)

    def apply_modules(
        self, modules: Mapping[str, Array], hidden: Float[Array, "B S d"], mask: base.Mask
    ) -> dict[str, Float[Array, "B _"]]:
        return self.method.apply_modules(modules, hidden, mask)

    def init_state(self) -> dict[str, Array]:
        return self.method.init_state()

    def token_terms(
        self,
        student_logits: base.Logits,
        teacher_logits: base.Views,
        tokens: base.Tokens,
        extras: base.Inputs,
    ) -> base.Terms:
        terms = self.method.token_terms(
            student_logits, _own(self.method, teacher_logits), tokens, extras
        )
        if not self.stabilisers.kl_to_initial:
            return terms
        return {
            **terms,
            _KL: reverse_kl(log_softmax(student_logits), log_softmax(teacher_logits[base.INITIAL])),
        }

    def tiled_terms(self, moments: base.Moments) -> base.Terms:
        own = {view: moments.teachers[view] for view in self.method.views}
        terms = self.method.tiled_terms(moments._replace(teachers=own))
        if not self.stabilisers.kl_to_initial:
            return terms
        return {**terms, _KL: moments.teachers[base.INITIAL].reverse_kl}

    def scoring(self) -> base.Stage | None:
        of_method = self.method.scoring()
        return (
            _Scoring(self.method, of_method, self.stabilisers)
            if self.stabilisers.gated
            else of_method
        )

    def prepare(self, terms: base.Terms, mask: base.Mask, inputs: base.Inputs) -> dict[str, Array]:
        of_method = {name: values for name, values in terms.items() if name != _GATE}
        inputs_of_method = (
            self.method.prepare(of_method, mask, inputs)
            if self.method.scoring() is not None
            else {}
        )
        return (
            {**inputs_of_method, _GATE: terms[_GATE]}
            if self.stabilisers.gated
            else inputs_of_method
        )

    def profiled(self, terms: base.Terms, mask: base.Mask, inputs: base.Inputs) -> base.Profiles:
        of_method = {name: values for name, values in terms.items() if name != _KL}
        return self.method.profiled(of_method, mask, inputs)

    def reduce(self, terms: base.Terms, mask: base.Mask, inputs: base.Inputs) -> base.Sums:
        of_method = {name: values for name, values in terms.items() if name != _KL}
        inputs_of_method = {name: values for name, values in inputs.items() if name != _GATE}
        weight = self._weight(mask, inputs)
        if weight is None:
            summands, metrics = self.method.reduce(of_method, mask, inputs_of_method)
        else:
            product = (
                weight * inputs_of_method["weight"].astype(weight.dtype)
                if "weight" in inputs_of_method
                else weight
            )
            summands, metrics = self.method.reduce(
                of_method, mask, {**inputs_of_method, "weight": product}
            )
            metrics = {**metrics, "kept_share": base.masked_total(weight, mask)}
        if _KL in terms:
            summands = {
                **summands,
                _KL: base.LossTerm(
                    self.stabilisers.kl_to_initial,
                    *base.token_mean(terms[_KL], mask, inputs_of_method),
                ),
            }
            metrics = {**metrics, "kl_to_initial": base.masked_total(terms[_KL], mask)}
        return summands, metrics

    def _weight(self, mask: base.Mask, inputs: base.Inputs) -> Float[Array, "B T"] | None:
        """The product of the weights that are on."""
        weights = [inputs[_GATE]] if self.stabilisers.gated else []
        if self.stabilisers.position_half_life is not None:
            column = jnp.arange(mask.shape[1], dtype=jnp.result_type(float))
            weights.append(
                jnp.broadcast_to(
                    jnp.exp2(-column / self.stabilisers.position_half_life), mask.shape
                )
            )
        return functools.reduce(jnp.multiply, weights) if weights else None

    def variables(self) -> base.Variables:
        of_method, settings = self.method.variables(), self.stabilisers
        gates = [f"{len(settings.mask_tokens)} special tokens masked"] * bool(settings.mask_tokens)
        for side in ("below", "above"):
            bound = getattr(settings, f"teacher_entropy_{side}")
            gates += [] if bound is None else [f"teacher entropy {side} {bound:g}"]
        if settings.position_half_life is not None:
            gates.append(f"weight halved every {settings.position_half_life:g} tokens")
        pull = [f"{settings.kl_to_initial:g} × KL to the initial model"] * bool(
            settings.kl_to_initial
        )
        return of_method._replace(
            gates=joined(of_method.gates, *gates),
            regularisation=joined(of_method.regularisation, *pull),
        )


@dataclasses.dataclass(frozen=True)
class _Scoring:
    """A method's scoring stage, if it has one, and whether each token's loss is let through."""

    method: base.Loss
    own: base.Stage | None
    stabilisers: Stabilisers

    def token_terms(
        self,
        student_logits: base.Logits,
        teacher_logits: base.Views,
        tokens: base.Tokens,
        extras: base.Inputs,
    ) -> base.Terms:
        views, settings = _own(self.method, teacher_logits), self.stabilisers
        terms = (
            self.own.token_terms(student_logits, views, tokens, extras)
            if self.own is not None
            else {}
        )
        let_through = jnp.ones(tokens.shape, bool)
        if settings.mask_tokens:
            let_through &= ~jnp.isin(tokens, jnp.asarray(settings.mask_tokens, tokens.dtype))
        if settings.by_entropy:
            uncertainty = entropy(
                log_softmax(next(views[view] for view in self.method.views if view != base.INITIAL))
            )
            let_through &= uncertainty < (
                math.inf
                if settings.teacher_entropy_below is None
                else settings.teacher_entropy_below
            )
            let_through &= uncertainty > (
                -1 if settings.teacher_entropy_above is None else settings.teacher_entropy_above
            )
        return {**terms, _GATE: let_through.astype(jnp.result_type(float))}


def joined(own: str, *more: str) -> str:
    """One of the survey's variables with more words to it; `own` may be "none".

    >>> joined("none", "a clip"), joined("a clip", "a gate")
    ('a clip', 'a clip, a gate')
    """
    return ", ".join([*[own] * (own != "none"), *more]) or "none"


def _own(method: base.Loss, teacher_logits: base.Views) -> base.Views:
    return {view: teacher_logits[view] for view in method.views}
