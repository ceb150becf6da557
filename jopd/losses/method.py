"""What a method is: the description that a trainer goes by, and the two functions that it writes.

The time stage may ask for `inputs`, arrays [B, T] or [B, 1] that others provide under these names:

    behaviour_logp    log-probability of each token when it was sampled
    truncated         1 where the length limit ended the row, 0 where a stop token did
    reward            what the task's verifier says of the row's answer, in [0, 1]
    group_advantage   that reward, less the mean over the prompt's samples, divided by their spread
    step              optimiser steps done before this batch's first
    weight            a factor on each token's loss, by whoever wants to stress or to silence
                      tokens; absent, it is 1

`token_terms` says what a method's terms are. Where all that they need are log-probabilities of the
sampled token, entropies, KLs and perhaps sums of its own (`second_pass`) at temperature 1, a method
may have a tiled form beside it, `tiled_terms`, which a trainer prefers: its logits are made in
tiles of the vocabulary, and no more often than they must be (`jopd.losses.tiled`). Tests hold the
two to each other.

What needs the whole batch, or decides what is counted, and depends on logits comes from a scoring
pass without gradient: a method's `scoring` is its vocabulary stage and `prepare` makes inputs of
its terms.
"""

import abc
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

from jaxtyping import Array, Float, PRNGKeyArray

from jopd.losses.types import (
    Inputs,
    Logits,
    Mask,
    Moments,
    Profiles,
    SecondPass,
    Stage,
    Sums,
    Terms,
    Tokens,
    Variables,
    Views,
)
from jopd.losses.windows import Windows

# The view of the student as it was at the start of the run; every other view is the teacher's.
INITIAL = "initial"

INPUTS = ("behaviour_logp", "truncated", "reward", "group_advantage", "step")
JUDGED = ("reward", "group_advantage")  # by the task's verifier, on the host


class Alert(NamedTuple):
    """What a run says, once, when one of a step's metrics rises above a bound."""

    metric: str
    above: float
    message: str


class Loss(abc.ABC):
    """The two pure functions of one stream of sequences, and what they read.

    Attributes:
      views: the teacher contexts whose logits the vocabulary stage reads. "initial" is the student
        as it was at the start of the run, in the student's own context; every other view is the
        teacher's.
      extras: per-token arrays [B, T, ...] that the vocabulary stage reads besides logits and
        tokens.
      inputs: arrays [B, T] or [B, 1], of those named in INPUTS, that the time stage reads besides
        the terms.
      module_inputs: those that `apply_modules` makes, and that plain arrays stand in for in
        `evaluate`.
      ordered: whether a token's place counts, so that masks must be on from column 0 up to a row's
        last token.
      why_not_zero: why loss or gradient are not 0 where student and teacher say the same in every
        view; empty where they are.
      tiled: whether the settings allow the vocabulary stage's tiled form. A subclass, or a mixin
        before it, that writes `token_terms` anew has none until it writes `tiled_terms` too.
      second_pass: what the tiled form needs that is neither a log-probability of the sampled token
        nor an entropy nor a KL.
    """

    name: ClassVar[str]
    views: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    module_inputs: tuple[str, ...] = ()
    ordered: bool = False
    why_not_zero: str = ""
    tiled: bool = False
    second_pass: SecondPass | None = None

    def __init_subclass__(cls, **keywords: Any):
        super().__init_subclass__(**keywords)
        order = [{*vars(it)} & {"token_terms", "tiled_terms"} for it in cls.__mro__]
        if next(filter(None, order)) == {"token_terms"}:
            cls.tiled = False

    @property
    def vanishes_at_teacher(self) -> bool:
        return not self.why_not_zero

    @abc.abstractmethod
    def token_terms(
        self, student_logits: Logits, teacher_logits: Views, tokens: Tokens, extras: Inputs
    ) -> Terms:
        """Vocabulary stage, differentiable in the student's logits: per-token terms, [*n] or [*n,
        k] each.
        """

    def tiled_terms(self, moments: Moments) -> Terms:
        """The same terms of sums over the vocabulary, where `tiled` says so: for speed."""
        raise NotImplementedError(f"{self.name} has no tiled form under its settings")

    @abc.abstractmethod
    def reduce(self, terms: Terms, mask: Mask, inputs: Inputs) -> Sums:
        """Time stage: the loss's summands and the metrics. Counts depend on mask and inputs alone,
        never on terms.
        """

    def profiled(self, terms: Terms, mask: Mask, inputs: Inputs) -> Profiles:
        """What is worth a profile along the completion besides what every method has: values, and
        where they count.
        """
        del terms, mask, inputs
        return {}

    def scoring(self) -> Stage | None:
        """The vocabulary stage of a pass without gradient over the whole batch, where `prepare`
        needs one.
        """
        return None

    def prepare(self, terms: Terms, mask: Mask, inputs: Inputs) -> dict[str, Array]:
        """More inputs [B, T] or [B, 1] for the time stage, of the scoring pass's terms."""
        del terms, mask, inputs
        return {}


class Method(Loss):
    """A way to turn a teacher's judgement into a loss: a frozen dataclass of settings with two pure
    functions.

    Attributes:
      name: what the command line and the registry call it.
      source: the paper or report, and the grade of what is implemented (P read there, S secondary
        readings, R reconstruction).
      route: how the teacher's judgement becomes a gradient.
      aggregation: what the per-token loss is divided by.
      identity_settings: those under which the identity check sees every token, where the usual ones
        let none through.
      shown: inputs of `prepare`, [B, T], that are worth a picture.
      run_defaults: settings of a run that the method's paper has otherwise than the usual one, as
        ("group.name", value); they hold where the method is chosen by its name alone.
      on_policy_share: the share of completions that the student writes; the others are references.
      updates: optimiser steps on one batch of completions.
      teacher_update: "frozen" keeps the teacher as it was loaded, "ema" lets it follow the student,
        "live" is the student itself.
      guided_share: the share of the student's completions that are sampled with the privileged
        context in the prompt. They are scored without it, like the others.
      guided_writer: who samples those, the student as it is now or the teacher.
      modules_learning_rate: of the parameters that `init_modules` makes.
      one_model: whether the method means something only if the teacher is the student's own initial
        model, so that a run with another one is refused.
      sampled_gradient: whether the gradient is an estimate from the sampled tokens, and so right
        for tokens that the policy itself has drawn, at the loss's temperature.
      alerts: metrics that tell when the method does other than its user thinks.
    """

    source: ClassVar[str]
    route: ClassVar[str] = "direct: a divergence, differentiated"
    run_defaults: ClassVar[tuple[tuple[str, Any], ...]] = ()
    identity_settings: ClassVar[tuple[tuple[str, Any], ...]] = ()
    shown: tuple[str, ...] = ()
    views: tuple[str, ...] = ("teacher",)
    on_policy_share: float = 1.0
    updates: int = 1
    teacher_update: Literal["frozen", "ema", "live"] = "frozen"
    guided_share: float = 0.0
    guided_writer: Literal["student", "teacher"] = "student"
    modules_learning_rate: float = 1e-3
    one_model: bool = False
    sampled_gradient: bool = False
    alerts: tuple[Alert, ...] = ()

    @property
    def aggregation(self) -> Literal["token mean", "row sum"]:
        return "token mean"

    @property
    def completions(self) -> Literal["student", "reference", "mixed"]:
        """Who writes the completions."""
        return (
            "student"
            if self.on_policy_share == 1
            else "mixed"
            if self.on_policy_share > 0
            else "reference"
        )

    @property
    def scorings(self) -> int:
        """How often a step's completions are graded: by a teacher that moves, for each update."""
        return 1 if self.teacher_update == "frozen" else self.updates

    @property
    def teacher_share(self) -> float:
        """The share of the completions that the teacher writes."""
        return self.guided_share if self.guided_writer == "teacher" else 0.0

    def init_modules(self, width: int, key: PRNGKeyArray) -> dict[str, Array]:
        """Parameters, float32, of small modules that the method owns and trains on the student's
        final hidden states.
        """
        del width, key
        return {}

    def apply_modules(
        self, modules: Mapping[str, Array], hidden: Float[Array, "B S d"], mask: Mask
    ) -> dict[str, Float[Array, "B _"]]:
        """More inputs for the time stage, of the modules' parameters and the hidden states.

        `hidden` has T + 1 columns, S = T + 1: column t predicts token t, the last one stands after
        token T. It carries the student's gradient: detach it unless that is meant.
        """
        del modules, hidden, mask
        return {}

    def init_state(self) -> dict[str, Array]:
        """What the method remembers from step to step; part of the checkpoint."""
        return {}

    @property
    def near_future(self) -> Windows | None:
        """Places in the completions from which student and teacher write on; None for most."""
        return None

    @property
    def streams(self) -> Mapping[str, Loss]:
        """The loss on further sequences that grow out of the completions, under their name; its
        summands are added to its own.
        """
        return {}

    @abc.abstractmethod
    def variables(self) -> Variables:
        """Itself, in the survey's six variables, as its settings have it."""
