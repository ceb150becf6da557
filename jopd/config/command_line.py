"""The command line: a preset, a method, and the settings that differ from them.

A preset is a Python file with a function `config() -> Config`. The command line is parsed twice:
the preset and `--method NAME` first decide the concrete types, then tyro parses those, so
`--method.X` is a field of that method and of no other.
"""

import copy
import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tyro

from jopd import losses, plugins, presets
from jopd.config.files import load_yaml
from jopd.config.settings import Config
from jopd.nearest import did_you_mean

# The presets of files that were read, by the name that their runs have.
_READ: dict[str, Config] = {}
# What is changed first has short names.
SHORT = {
    "--student": "--student.model",
    "--teacher": "--teacher.model",
    "--data": "--data.source",
    "--lr": "--optimizer.learning-rate",
}


def preset(name: str) -> Config:
    """The config of a preset: a name from `jopd/presets/`, or a path to a Python file with a
    function `config()`.

    Raises:
      ValueError: no such preset or file, or the file has no `config()`.
    """
    folder = Path(presets.__file__).parent
    of_user = name.endswith(".py")
    path = Path(name).expanduser() if of_user else folder / f"{name.replace('-', '_')}.py"
    if not path.is_file():
        known = preset_names()
        instead = f": it is a method, --method {name}" if name in losses.names() else ""
        raise ValueError(
            f"preset {name!r} is not known{instead or did_you_mean(name, known)}; presets: "
            f"{', '.join(known)}, or a path to a Python file"
        )
    make = vars(plugins.module(path)).get("config")
    made = make() if callable(make) else None
    if not isinstance(made, Config):
        raise ValueError(
            f"preset {path}: the file needs a function `config()` that returns a jopd.config.Config"
        )
    if of_user:
        _READ[path.stem] = made
    return made


def preset_names() -> list[str]:
    return sorted(
        path.stem.replace("_", "-") for path in Path(presets.__file__).parent.glob("[a-z]*.py")
    )


def unchanged(name: str, method: str) -> Config | None:
    """A preset with a method and nothing else changed, by the name of its runs; None of one that
    this process has not read.
    """
    base = _READ.get(name) or (preset(name) if name in preset_names() else None)
    return None if base is None else with_method(base, method)


def with_method(base: Config, method: str) -> Config:
    """The run with another method, as that comes, and what its paper has otherwise."""
    if losses.name_of(base.method) == method:
        return base
    # Not `replace`, which checks: what the method can't have of the preset, a flag may change
    # before `tyro.cli` builds the run.
    run = copy.copy(base)
    object.__setattr__(run, "method", losses.get(method))
    for setting, value in run.method.run_defaults:
        group, field = setting.split(".")
        changed = dataclasses.replace(getattr(run, group), **{field: value})
        object.__setattr__(run, group, changed)
    return run


def parse(arguments: list[str], *, program: str = "python -m jopd.train") -> tuple[str, Config]:
    """The preset's name and the run that a command line asks for.

    Raises:
      ValueError: an unknown preset, method or flag, or settings that contradict each other.
      SystemExit: after `--help`, and for values that tyro refuses, with its message.
    """
    rest = [_spelt_out(argument) for argument in arguments]
    method = take(rest, "--method")
    trust_code = "--trust-code" in rest
    rest = [argument for argument in rest if argument != "--trust-code"]
    _answer_resume(rest)
    if (saved := take(rest, "--config")) is not None:
        if rest[:1] and not rest[0].startswith("-"):
            raise ValueError(
                f"--config {saved} already says the whole run: leave out the preset {rest[0]!r}"
            )
        name, base = load_yaml(Path(saved).expanduser(), trusted=None if trust_code else ())
    else:
        if trust_code:
            raise ValueError(
                "--trust-code is for a --config that names code of its own: leave it out"
            )
        name = rest.pop(0) if rest and not rest[0].startswith("-") else "default"
        base = preset(name)
    _answer_chunk(rest, base)
    if method is not None:
        method = plugins.absolute(method) if plugins.is_named(method) else method
        base = with_method(base, method)
    # tyro reads the method's class off the default, so --method.X are that method's own fields.
    config, unknown = tyro.cli(
        Config,
        default=base,
        args=rest,
        prog=program,
        description=_first_screen(name, base, program),
        return_unknown_args=True,
    )
    if unknown:
        raise ValueError(_no_setting(unknown[0].partition("=")[0], base, program))
    return (Path(name).stem if name.endswith(".py") else name), config


def _first_screen(name: str, base: Config, program: str) -> str:
    """What one changes first, with examples, before the list of everything."""
    rows = [
        ("--student MODEL", "Hugging Face folder or hub name, GGUF file", base.student.model),
        ("--teacher MODEL", "likewise, or self, or none", base.teacher.model),
        ("--data SOURCE", "file, hf:NAME, tfds:NAME, builtin, ...", base.data.source),
        ("--method NAME", "below, or FILE.py:NAME of your own", base.method.name),
        ("--steps N", "rollout batches", base.steps),
        ("--prompts N", "of a batch", base.prompts),
        ("--rollout.samples N", "answers to each prompt", base.rollout.samples),
        ("--rollout.max-new-tokens N", "of an answer", base.rollout.max_new_tokens),
        ("--lr X", "learning rate", base.optimizer.learning_rate),
        ("--student.lora.rank N", "adapters; 0 trains all", base.student.lora.rank),
        ("--output FOLDER", "or gs://BUCKET/RUN", base.output or "runs/..."),
        ("--seed N", "of data order, answers and new parameters", base.seed),
    ]
    others = ", ".join(other for other in preset_names() if other != name)
    return "\n".join(
        [
            f"Preset {name} with method {base.method.name}.",
            "",
            *(f"  {flag:<27} {what:<43} {value}" for flag, what, value in rows),
            "",
            "Examples:",
            f"  {program} --steps 50",
            f"  {program} --method opsd --data problems.jsonl --student Qwen/Qwen3-0.6B",
            f"  {program} --config runs/default-opd-seed0/config.yaml --output again",
            "",
            f"Other presets, as in `{program} PRESET`: {others}, or FILE.py.",
            f"Methods: {', '.join(losses.names())}.",
            "All settings of this preset and this method, with their values:",
        ]
    )


def _no_setting(flag: str, base: Config, program: str) -> str:
    """What is said of a flag that there isn't."""
    name = flag.replace("_", "-")
    field = name.removeprefix("--method.").replace("-", "_")
    owners = [
        method
        for method, its in losses.METHODS.items()
        if name.startswith("--method.") and field in getattr(its, "__dataclass_fields__", ())
    ]
    if owners:
        return f"{flag} is no setting of {base.method.name}, but of --method {', '.join(owners)}"
    near = did_you_mean(name, [*SHORT, "--method", "--config", *_flags(base)])
    return f"{flag} is no setting{near}: `{program} --help` lists them"


def _spelt_out(argument: str) -> str:
    """A flag with a short name as it is called."""
    flag, equals, value = argument.partition("=")
    return SHORT.get(flag, flag) + equals + value


def _flags(settings: Any, prefix: str = "--") -> Iterator[str]:
    """The flags of a dataclass and of those that it holds."""
    for field in dataclasses.fields(settings):
        value, flag = getattr(settings, field.name), prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            yield from _flags(value, flag + ".")
        else:
            yield flag


def _answer_chunk(arguments: list[str], base: Config) -> None:
    """A setting of earlier versions, answered with what stands for it now."""
    if (chunk := take(arguments, "--chunk")) is not None:
        rows = base.rows // base.micro_batches
        tokens = int(chunk) * rows if chunk.isdecimal() else "..."
        raise ValueError(
            f"--chunk {chunk}: a chunk is now a number of tokens a device, columns × rows a device "
            f"and micro-batch: with the {rows} rows of the preset on one device say "
            f"--chunk-tokens {tokens}, on several divide by data × fsdp"
        )


def _answer_resume(arguments: list[str]) -> None:
    """A habit from elsewhere, answered with what happens anyway."""
    for argument in arguments:
        flag = argument.partition("=")[0].replace("_", "-")
        if flag in ("--resume", "--resume-from-checkpoint"):
            raise ValueError(
                f"{argument}: the same command goes on by itself from the last checkpoint of its "
                "folder (--output says which): leave this out"
            )


def take(arguments: list[str], flag: str) -> str | None:
    """Removes `flag VALUE` or `flag=VALUE` and returns the value."""
    for index, argument in enumerate(arguments):
        if argument == flag:
            if index + 1 == len(arguments):
                raise ValueError(f"{flag} needs a value")
            value = arguments[index + 1]
            del arguments[index : index + 2]
            return value
        if argument.startswith(flag + "="):
            del arguments[index]
            return argument.removeprefix(flag + "=")
    return None


class Refused(SystemExit):
    """The end, with status 2, of a command line that asks for what can't be; `message` has been
    printed.
    """

    def __init__(self, message: str):
        super().__init__(2)
        self.message = message


def or_exit(function, *arguments):
    """Calls `function`; a ValueError becomes one line on standard error and a `Refused`. A reader
    that has had enough, as in `--help | head`, ends it quietly.
    """
    try:
        return function(*arguments)
    except BrokenPipeError:
        # What is still in the buffer is written when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise Refused(f"error: {error}") from None
