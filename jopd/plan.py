"""`python -m jopd.plan [PRESET] [SETTINGS] --topology v5e:2x4 [--slices N] [--json]`: whether a
run fits a machine and how fast it could go there, before anyone pays for it.

The run's own programs are compiled ahead of time for the TPU slice, on any machine with a CPU and
`pip install jopd[tpu]`; no weight is read and nothing is run. On a machine with a GPU or TPU, and
without --topology, it is planned for that one. What does not fit is told with what to change, tried
by compiling.
"""

import sys
from typing import Any

import jax

from jopd import config as configs
from jopd.planning import machines


def main(arguments: list[str] | None = None) -> None:
    configs.or_exit(run, sys.argv[1:] if arguments is None else list(arguments))


def run(arguments: list[str]) -> dict[str, Any]:
    """Prints the plan, as a table or as JSON, and returns it.

    Raises:
      ValueError: settings or a topology that can't be; no accelerator and no topology.
    """
    topology, slices = configs.take(arguments, "--topology"), configs.take(arguments, "--slices")
    as_json = "--json" in arguments
    rest = [argument for argument in arguments if argument != "--json"]
    if slices is not None and not (slices.isdecimal() and int(slices)):
        raise ValueError(f"slices={slices} must be a whole number, 1 or more")
    if slices is not None and topology is None:
        raise ValueError(f"slices={slices} are of a --topology: name one, such as v5e:2x4")
    name, config = configs.parse(rest, program="python -m jopd.plan")
    # What is compiled for a machine that isn't here can't be read back from a cache.
    jax.config.update("jax_enable_compilation_cache", topology is None)
    machine = machines.named(topology, int(slices or 1))
    # Seconds of imports, which nobody should wait for who asks for help or has mistyped a setting.
    from jopd.planning import job

    return job.run(name, config, machine, as_json=as_json)


if __name__ == "__main__":
    main()
