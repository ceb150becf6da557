"""A run of any method."""

from jopd import losses
from jopd.config import Config, RolloutConfig, Teacher


def config_of(method: losses.Method, **settings) -> Config:
    """A run of the method, from another model's teacher unless the method makes its own."""
    teacher = Teacher(model="self") if method.teacher_update != "frozen" else Teacher()
    rollout = RolloutConfig(samples=4 if "group_advantage" in method.inputs else 1)
    return Config(method=method, **{"teacher": teacher, "rollout": rollout, **settings})
