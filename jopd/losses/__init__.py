"""What is learnt from a teacher: one file a method, each two pure functions of arrays.

    method = losses.get("opd", divergence="forward_kl")
    views = {"teacher": teacher_logits}
    loss, metrics = losses.evaluate(method, student_logits, views, tokens, mask)

A method is added with its file, its line in METHODS and its tests. The examples in docstrings stand
in their own module, where `jnp` is `jax.numpy`; the tests run them.
"""

import dataclasses
import inspect
from typing import Any

from jopd import plugins
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
    "name_of",
    "names",
    "register",
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


def register(method: type[Method]) -> type[Method]:
    """Makes a method of your own known by its `name`, as ours are; usable as a decorator.

    >>> import dataclasses
    >>> @dataclasses.dataclass(frozen=True)
    ... class Mine(OPD):
    ...     name = "mine"
    >>> register(Mine) is Mine and get("mine").name
    'mine'
    >>> del METHODS["mine"]

    Raises:
      ValueError: a name that another method has, or a class that is no method.
    """
    check_is_method(method, method.__qualname__)
    other = METHODS.get(method.name)
    if other is not None and (other.__module__, other.__qualname__) != (
        method.__module__,
        method.__qualname__,
    ):
        raise ValueError(f"method name {method.name!r} is taken by {other}: give yours another")
    METHODS[method.name] = method
    return method


def get(name: str, **settings: Any) -> Method:
    """The method of that name, or `path/to/file.py:Name` of a class in a file of yours.

    >>> get("opd", divergence="forward_kl").divergence
    'forward_kl'

    Raises:
      ValueError: an unknown method or setting, with the nearest known one; or a setting's bad
        value, with the cure.
    """
    if plugins.is_named(name):
        method = plugins.load(name)
        check_is_method(method, name)
    else:
        check_known("method", [name], METHODS)
        method = METHODS[name]
    check_known(f"setting of {name}", settings, inspect.signature(method).parameters)
    return method(**settings)


def name_of(method: Method) -> str:
    """What `get` finds the method's class by: its own name, or that of a user's file and class.

    >>> name_of(OPD(divergence="forward_kl"))
    'opd'
    """
    return plugins.name_of(type(method)) or method.name


def check_is_method(method: Any, name: str) -> None:
    """Raises ValueError unless it is a class of methods that can be used.

    >>> check_is_method(OPD, "OPD")
    """
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise ValueError(f"{name} is no method: write a subclass of jopd.losses.Method")
    if inspect.isabstract(method):
        missing = ", ".join(sorted(method.__abstractmethods__))
        raise ValueError(f"{name} is not finished: it has no {missing}")
    if not dataclasses.is_dataclass(method) or "__dataclass_fields__" not in vars(method):
        raise ValueError(
            f"{name} must be a dataclass: put @dataclasses.dataclass(frozen=True) on it"
        )
    for attribute in ("name", "source"):
        if not isinstance(getattr(method, attribute, None), str):
            raise ValueError(f"{name} has no {attribute}: write `{attribute} = '...'` in its body")
