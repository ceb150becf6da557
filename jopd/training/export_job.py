"""The student of one of a run's checkpoints, from the run's settings to its folder."""

import contextlib
import dataclasses
from pathlib import Path

import jax

from jopd.config import Config, Hub, MeshConfig, Tracking, load_yaml
from jopd.models.files import one_line
from jopd.training import home as homes
from jopd.training import hub as hubs
from jopd.training import logs, setup
from jopd.training.checkpoint import Checkpoints, DamagedCheckpoints
from jopd.training.console import say
from jopd.training.fit import check_divides
from jopd.training.home import Disk
from jopd.training.mesh import make_mesh
from jopd.training.students import write_cards, write_student


def run(address: str, step: str, output: Path, hub: Hub, *, trust_code: bool) -> None:
    """Writes the student of a step ("best", "latest" or a number) and uploads it on demand.

    Raises:
      ValueError: no run is there, somebody is at it, no checkpoint of that step, a folder that
        holds something else, or an upload that fails.
    """
    hubs.check_login(hub)
    home = homes.at(address)
    home.fetch()
    settings = home.folder / "config.yaml"
    if not settings.is_file():
        raise ValueError(f"{home} holds no run (no config.yaml): name the folder of one")
    name, config = load_yaml(settings, trusted=None if trust_code else ())
    # Nothing is trained or computed, so nobody follows it, and any devices will do.
    config = on_this_machine(
        dataclasses.replace(config, output=address, hub=Hub(), tracking=Tracking(to=()))
    )
    home.claim()
    try:
        write(home, name, config, step, output)
    except DamagedCheckpoints as error:
        raise ValueError(str(error)) from None
    finally:
        home.leave()
    if hub.push_to:
        try:
            hubs.upload(output, hub)
        except Exception as error:
            raise ValueError(
                f"hub.push_to={hub.push_to}: the upload failed ({one_line(error)}); the student is "
                f"in {output}: hf upload {hub.push_to} {output}"
            ) from None


def on_this_machine(config: Config) -> Config:
    """A run without the kernels of its own machine, and on its mesh or, where this one has other
    devices, one that splits tensors alone, and no batch, which would have to divide.
    """
    student, teacher = (
        dataclasses.replace(role, compute=dataclasses.replace(role.compute, attention="auto"))
        for role in (config.student, config.teacher)
    )
    config = dataclasses.replace(config, student=student, teacher=teacher)
    try:
        check_divides(config, make_mesh(config.mesh))
    except ValueError:
        return dataclasses.replace(config, mesh=MeshConfig(data=1, fsdp=1, tensor=-1))
    return config


def write(home: Disk, name: str, config: Config, step: str, output: Path) -> None:
    """Reads models and checkpoint, and writes what comes of them."""
    made = setup.prepare(name, config, home)
    checkpoints = Checkpoints(home.checkpoints, keep=config.checkpoint.keep, facts=made.facts)
    with contextlib.closing(checkpoints), jax.set_mesh(made.mesh):
        chosen = step_of(checkpoints, step, home)
        state = checkpoints.restore_one(chosen, made.state)
        adapter = output.with_name(f"{output.name}-adapter")
        write_student(made, state, output, adapter)
    evaluations = logs.read(home.folder).evaluations
    write_cards(made, [it for it in evaluations if it["step"] <= chosen], output, adapter)
    say(f"the student after step {chosen:,} is in {output}")


def step_of(checkpoints: Checkpoints, step: str, home: Disk) -> int:
    """The checkpoint that a name means.

    Raises:
      ValueError: there is none.
    """
    kept = sorted(checkpoints.manager.all_steps())
    if not kept:
        raise ValueError(f"{home} has no checkpoint yet: its first is written when it gets there")
    by_name = {"latest": kept[-1], "best": checkpoints.manager.best_step()}
    chosen = by_name[step] if step in by_name else int(step)
    if chosen not in kept:
        raise ValueError(
            f"step={step}: {home} has the checkpoints of steps {', '.join(map(str, kept))}: name "
            "one of them (--checkpoint.keep keeps more)"
        )
    return chosen
