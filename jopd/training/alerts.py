"""What a method says of its own metrics: once on the console, and at every step that it holds of in
the log.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jopd.losses.method import Alert
from jopd.training.console import say


class Alerts:
    """The alerts of a run's method."""

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
