"""Everything that a run is told: `groups` and `settings`, frozen dataclasses that check themselves
and, in `checks`, each other; the `command_line` that tyro makes of them; and their `files`.
"""

from jopd.config.command_line import (
    or_exit,
    parse,
    preset,
    preset_names,
    take,
    unchanged,
)
from jopd.config.files import (
    code_of,
    differences,
    load_yaml,
    same_numbers,
    save_yaml,
    to_dict,
)
from jopd.config.groups import (
    Checkpointing,
    Evaluation,
    Hub,
    MeshConfig,
    Optimizer,
    RolloutConfig,
    Student,
    Teacher,
    Tracking,
)
from jopd.config.settings import Config
from jopd.nearest import did_you_mean

__all__ = [
    "Checkpointing",
    "Config",
    "Evaluation",
    "Hub",
    "MeshConfig",
    "Optimizer",
    "RolloutConfig",
    "Student",
    "Teacher",
    "Tracking",
    "code_of",
    "did_you_mean",
    "differences",
    "load_yaml",
    "or_exit",
    "parse",
    "preset",
    "preset_names",
    "same_numbers",
    "save_yaml",
    "take",
    "to_dict",
    "unchanged",
]
