"""`python -m jopd.check identity [--method NAME]`: a teacher that is the student teaches nothing.

Student and teacher get the same logits, on random completions. A method that compares the two must
then have loss 0 and gradient 0; one that is not zero there is measuring something else, or has
views mixed up.

`python -m jopd.check device`: whether this machine computes what it should; see `jopd.device`.
"""

import dataclasses
import sys
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import tyro

from jopd import config, losses
from jopd.losses import Method
from jopd.training import console

TOLERANCE = 1e-6


@dataclasses.dataclass(frozen=True)
class Check:
    """What to check.

    Attributes:
      what: the check.
      method: of the check identity, one method instead of all.
    """

    what: Annotated[Literal["identity", "device"], tyro.conf.Positional] = "identity"
    method: str | None = None


def identity(method: Method) -> tuple[float, float]:
    """Size of the loss and of the largest gradient entry where every view of the teacher gives the
    student's logits.
    """
    logits = jax.random.normal(jax.random.key(0), (3, 5, 40))
    tokens = jax.random.randint(jax.random.key(1), (3, 5), 0, 40)
    mask = jnp.arange(5)[None] < jnp.array([[5], [3], [1]])
    # Written by the student itself, ended, unrewarded, and worth what a student at its teacher is
    # worth: nothing.
    inputs = {name: jnp.zeros((3, 1)) for name in (*method.inputs, *method.module_inputs)}
    if "behaviour_logp" in inputs:
        inputs["behaviour_logp"] = jnp.sum(
            jax.nn.log_softmax(logits) * jax.nn.one_hot(tokens, 40), axis=-1
        )
    if "values" in inputs:
        inputs["values"] = jnp.zeros(tokens.shape)
    teachers = {view: logits for view in method.views}
    value, gradient = jax.value_and_grad(
        lambda z: losses.evaluate(method, z, teachers, tokens, mask, streams={}, **inputs)[0]
    )(logits)
    return abs(float(value)), float(jnp.abs(gradient).max())


def device_is_good() -> bool:
    """Checks the machine, says each finding and, of those that are not good, what to set."""
    # Seconds of imports, which nobody should wait for who asks for help or for the other check.
    from jopd import device

    kind = f"{jax.device_count()} × {jax.devices()[0].device_kind}"
    console.say(f"{kind}, jax {jax.__version__} ...")
    found = []
    for finding in device.findings():
        verdict = "ok" if finding.good else f"NOT GOOD: set {finding.instead}"
        console.say(f"{finding.what}: {finding.found:.2g} (allowed {finding.allowed:g}): {verdict}")
        found.append(finding)
    return all(finding.good for finding in found)


def refuse_what_would_be_dropped(settings: Check) -> None:
    """Raises ValueError for a method that the check of a machine would never look at."""
    if settings.what == "device" and settings.method is not None:
        raise ValueError(
            f"method={settings.method} has no effect on the check of a device: leave it out, or "
            "check identity"
        )


def main(arguments: list[str] | None = None) -> None:
    settings = tyro.cli(Check, args=arguments, prog="python -m jopd.check", description=__doc__)
    config.or_exit(refuse_what_would_be_dropped, settings)
    if settings.what == "device":
        if not device_is_good():
            sys.exit(1)
        return
    names = losses.names() if settings.method is None else (settings.method,)
    failed = []
    for name in names:
        method = config.or_exit(losses.get, name)
        if not method.views:
            console.say(f"{name}: reads no teacher, so the check does not apply")
            continue
        if not method.vanishes_at_teacher:
            console.say(f"{name}: should not be 0 there: {method.why_not_zero}")
            continue
        loss, gradient = identity(losses.get(name, **dict(method.identity_settings)))
        good = max(loss, gradient) < TOLERANCE
        streams = [
            f" (its {key} should not be 0: {it.why_not_zero})" for key, it in method.streams.items()
        ]
        verdict = ("passed" if good else "FAILED") + "".join(streams)
        console.say(f"{name}: loss {loss:.1e}, largest gradient {gradient:.1e}: {verdict}")
        failed += [] if good else [name]
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
