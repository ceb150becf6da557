"""What is learnt from a teacher: one file a method, each two pure functions of arrays.

    method = losses.get("opd", divergence="forward_kl")
    views = {"teacher": teacher_logits}
    loss, metrics = losses.evaluate(method, student_logits, views, tokens, mask)

A method is added with its file, its line in METHODS and its tests. The examples in docstrings stand
in their own module, where `jnp` is `jax.numpy`; the tests run them.
"""

import inspect
from typing import Any

from jopd.losses.ar_opd import AnchoredResidualOPD
from jopd.losses.checks import check_known
from jopd.losses.cr_opd import CROPD
from jopd.losses.edge_opd import EvidenceGuidedOPD
from jopd.losses.entropy_opd import EntropyOPD
from jopd.losses.evaluation import Sequences, evaluate
from jopd.losses.g_opd import GOPD
from jopd.losses.gae_opd import GAEOPD
from jopd.losses.iw_opd import IWOPD
from jopd.losses.method import INPUTS, Alert, Loss, Method
from jopd.losses.opd import OPD
from jopd.losses.opd_pg import OPDPolicyGradient
from jopd.losses.opd_plus import OPDPlus
from jopd.losses.opsd import OPSD
from jopd.losses.rlsd import RLSD
from jopd.losses.sft import SFT
from jopd.losses.stabilisers import Stabilisers, stabilised
from jopd.losses.stages import batch_loss, time_stage, whole_batch_counts
from jopd.losses.topd import TOPD
from jopd.losses.types import LossTerm, Terms, Total, Variables
from jopd.losses.vopd import VOPD

__all__ = [
    "INPUTS",
    "METHODS",
    "Alert",
    "Loss",
    "LossTerm",
    "Method",
    "Sequences",
    "Stabilisers",
    "Terms",
    "Total",
    "Variables",
    "batch_loss",
    "evaluate",
    "get",
    "names",
    "stabilised",
    "time_stage",
    "whole_batch_counts",
]

# In the order of the papers: the baselines, the four papers, and what is near them.
METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        *(SFT, OPD, OPDPolicyGradient, OPSD),
        *(AnchoredResidualOPD, EvidenceGuidedOPD, RLSD, TOPD, GAEOPD, CROPD),
        *(VOPD, GOPD, IWOPD, EntropyOPD, OPDPlus),
    )
}


def names() -> tuple[str, ...]:
    """The methods there are.

    >>> names()[:4]
    ('sft', 'opd', 'opd_pg', 'opsd')
    """
    return tuple(METHODS)


def get(name: str, **settings: Any) -> Method:
    """The method of that name.

    >>> get("opd", divergence="forward_kl").divergence
    'forward_kl'

    Raises:
      ValueError: an unknown method or setting, with the nearest known one; or a setting's bad
        value, with the cure.
    """
    check_known("method", [name], METHODS)
    check_known(f"setting of {name}", settings, inspect.signature(METHODS[name]).parameters)
    return METHODS[name](**settings)
