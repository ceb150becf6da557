"""What a method says of its own metrics: once on the console, and at every step that it holds of in
the log.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jopd.losses.method import Alert
from jopd.training.console import say

# Of the mean, by the student's precision: importance weights that are off by a thousandth and by
# two hundredths, far above what rounding makes. A reconstruction: no paper states one.
DRIFT = {"float32": 1e-3, "bfloat16": 2e-2}


def of_drift(dtype: str) -> Alert:
    """Where sampler and trainer no longer compute the same policy."""
    return Alert(
        "sampler_drift_mean",
        DRIFT[dtype],
        f"sampler and trainer differ by more than {DRIFT[dtype]:g} nats a token in {dtype}: what "
        "is learnt from is no longer what the policy wrote; `python -m jopd.check device` says "
        "which kernel or precision it is",
    )


class Alerts:
    """The alerts of a run."""

    def __init__(self, alerts: Sequence[Alert]):
        self._alerts = alerts
        self._said: set[str] = set()

    def added(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """A step's record, with `alerts`, metric to message, where a metric is above its bound."""
        raised = {
            alert.metric: alert.message
            for alert in self._alerts
            if record.get(alert.metric, 0) > alert.above
        }
        for metric, message in raised.items():
            if metric not in self._said:
                say(f"warning: {metric} is {record[metric]:.3g}: {message}")
        self._said |= raised.keys()
        return {**record, "alerts": raised} if raised else dict(record)
