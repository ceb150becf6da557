"""GAE-OPD: a critic says what later tokens will cost, so that credit reaches back in time at less
variance than returns.

    l_t      = sg( log q(y_t) - log pi(y_t) )
    delta_t  = l_t + g n_t V(s_{t+1}) - V(s_t)      n_t: 0 at the token that ended the row, else 1
    A_t      = delta_t + g h n_t A_{t+1}            h: gae_lambda
    R_t      = sg( A_t + V(s_t) )
    loss     = row_sum( -sg(A_t) log pi(y_t) ) + c_v / 2 token_mean( (V(s_t) - R_t)^2 )

A row cut at the length limit did not end: its last token is followed by V(s_{T+1}), read from the
hidden state that the token left (the bootstrap). V is linear in the student's final hidden state,
starts at 0, has its own learning rate and, unless that is asked for, sends no gradient into the
student. What V estimates is never above 0, unless rewards are clipped.

    critic plain       V = U(s_t)
    critic kl_split    V = -sg( KL(pi || q) ) + g U(s_t)     the exact part is not learnt:
                                                             U estimates E[ V(s_{t+1}) ]

For kl_split the KL at s_{T+1} is not measured, and the bootstrap is g U(s_{T+1}); of clipped
rewards the exact part is their own mean.

Limits of the advantages: g = 0 with V = -KL is `vopd`'s; V = 0 is `opd_pg`'s, immediate at h = 0
and discounted by g at h = 1 (the sum over rows stays). The expected gradient is that of the
discounted return if h = 1 or V is exact, on rows that ended; otherwise it is biased. Loss and
gradient are not 0 at the teacher, where every l is 0: A is then made of V alone, until V has learnt
to be 0.

Source: the name is the survey's, arXiv:2606.22793 (grade P), which tests nothing of it. The
equations are a
reconstruction (R): the paper does not state them; they are those of GAE, arXiv:1506.02438 (P), with
the reward l_t, and so are the defaults. kl_split is ours.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jopd.losses import base
from jopd.losses.credit import Estimate, PolicyGradient, generalized_advantage, td_errors
from jopd.losses.vocabulary import accumulator


@dataclasses.dataclass(frozen=True)
class GAEOPD(PolicyGradient):
    """The log-ratio of the sampled token as its reward, its credit by generalized advantage
    estimation.

    Attributes:
      discount: the share of the next state's value that counts, in [0, 1].
      gae_lambda: how far rewards are counted before the critic is believed, in [0, 1]: 0 for one
        token, 1 for all.
      value_weight: weight of the critic's squared error.
      critic: learns the whole value (`plain`), or what the exact KL of the state leaves of it
        (`kl_split`).
      trunk_gradient: whether the critic's error also trains the student; its own parameters it
        trains always.
      modules_learning_rate: the critic's.
    """

    name = "gae_opd"
    source = "arXiv:2606.22793 (name P, equations R); GAE arXiv:1506.02438 (P)"
    module_inputs = ("values", "bootstrap")
    ordered = True
    discount: float = 1.0
    gae_lambda: float = 0.95
    value_weight: float = 0.5
    critic: Literal["plain", "kl_split"] = "plain"
    trunk_gradient: bool = False
    modules_learning_rate: float = 1e-3

    def __post_init__(self):
        super().__post_init__()
        base.check_known("critic", [self.critic], ("plain", "kl_split"))
        for name in ("discount", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [0, 1]")
        if not self.value_weight > 0:
            raise ValueError(
                f"value_weight={self.value_weight} must be positive, or nothing trains the critic: "
                "for credit without one use --method opd_pg"
            )
        if not self.modules_learning_rate > 0:
            raise ValueError(
                f"modules_learning_rate={self.modules_learning_rate} must be positive: it is the "
                "critic's"
            )

    @property
    def inputs(self) -> tuple[str, ...]:
        return super().inputs + ("truncated",)

    @property
    def why_not_zero(self) -> str:
        return "what the critic says there is an advantage, until it has learnt to say 0"

    def init_modules(self, width: int, key: PRNGKeyArray) -> dict[str, Array]:
        # A linear regression: zeros are as good a start as any, and make the first advantages those
        # of V = 0.
        del key
        return {
            "value_weights": jnp.zeros(width, jnp.float32),
            "value_bias": jnp.zeros((), jnp.float32),
        }

    def apply_modules(
        self, modules: Mapping[str, Array], hidden: Float[Array, "B S d"], mask: base.Mask
    ) -> dict[str, Float[Array, "B _"]]:
        """`values` [B, T] of the states before each token, and `bootstrap` [B, 1] of the one after
        the row's last.
        """
        hidden = hidden if self.trunk_gradient else jax.lax.stop_gradient(hidden)
        columns = jnp.arange(hidden.shape[1])[None, :]
        length = mask.sum(axis=1, keepdims=True)
        # The states behind a row's end are padding's; a NaN among them would reach the weights'
        # gradient as 0 * NaN.
        hidden = base.silence(hidden.astype(accumulator(hidden.dtype)), columns <= length)
        values = hidden @ modules["value_weights"].astype(hidden.dtype) + modules[
            "value_bias"
        ].astype(hidden.dtype)
        after_last = jnp.where(columns == length, values, 0).sum(axis=1, keepdims=True)
        return {"values": values[:, :-1], "bootstrap": after_last}

    def token_terms(
        self,
        student_logits: base.Logits,
        teacher_logits: base.Views,
        tokens: base.Tokens,
        extras: base.Inputs,
    ) -> base.Terms:
        return self.sampled_terms(
            student_logits, teacher_logits["teacher"], tokens, expected=self.critic == "kl_split"
        )

    @property
    def tiled(self) -> bool:
        return super().tiled and (self.critic == "plain" or self.log_ratio_clip is None)

    def tiled_terms(self, moments: base.Moments) -> base.Terms:
        return self.tiled_sampled_terms(moments, "teacher", expected=self.critic == "kl_split")

    def estimate(self, terms: base.Terms, mask: base.Mask, inputs: base.Inputs) -> Estimate:
        reward, metrics = self.log_ratio(terms, mask)
        values, bootstrap = (inputs[name].astype(reward.dtype) for name in self.module_inputs)
        bootstrap = jnp.where(inputs["truncated"][:, 0] > 0, bootstrap[:, 0], 0)
        if self.critic == "kl_split":
            values, bootstrap = (
                terms["expected_reward"] + self.discount * values,
                self.discount * bootstrap,
            )
        known, bootstrap = jax.lax.stop_gradient((values, bootstrap))
        errors = td_errors(reward, known, mask, discount=self.discount, bootstrap=bootstrap)
        advantage = generalized_advantage(
            reward,
            known,
            mask,
            discount=self.discount,
            gae_lambda=self.gae_lambda,
            bootstrap=bootstrap,
        )
        returns = advantage + known
        critic = base.LossTerm(
            self.value_weight / 2, *base.token_mean(jnp.square(values - returns), mask, inputs)
        )
        # advantage = returns - value is also the critic's error, hence with the squares its
        # explained variance: 1 - Var[advantage] / Var[return].
        squares = {"gae_squared": jnp.square(advantage), "return_squared": jnp.square(returns)}
        metrics |= base.masked_totals(
            {"value": known, "td_error": errors, "gae": advantage, "return": returns, **squares},
            mask,
        )
        advantage = self.with_task_reward(advantage, mask, inputs)
        return Estimate(
            advantage,
            {"value": critic},
            metrics | base.masked_totals({"advantage": advantage}, mask),
        )

    @property
    def aggregation(self) -> Literal["token mean", "row sum"]:
        return "row sum"

    def variables(self) -> base.Variables:
        critic = {"plain": "critic", "kl_split": "critic split at the KL"}[self.critic]
        return base.Variables(
            state="student rollouts",
            support="sampled token",
            routing="none",
            regularisation="none",
            **self.described(
                f"GAE, discount {self.discount:g}, lambda {self.gae_lambda:g}, {critic}"
            ),
        )
