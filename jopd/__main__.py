"""`jopd COMMAND ...`: `python -m jopd.COMMAND ...`. Without a command they are listed."""

import importlib
import sys

from jopd.config import or_exit
from jopd.nearest import did_you_mean

COMMANDS = {
    "train": "one run of distillation, resumed where it stopped",
    "evaluate": "a model's answers to held-out problems",
    "generate": "a model's answers to prompts",
    "export": "the student of a checkpoint as a Hugging Face folder",
    "show": "runs as a page to look at: tokens, curves, profiles, settings",
    "methods": "every method in the survey's six variables",
    "check": "does a method vanish at its teacher; does this machine compute what it should",
    "plan": "does a run fit on a machine, and what bounds it",
}


def main(arguments: list[str] | None = None) -> None:
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print("usage: jopd COMMAND ...; jopd COMMAND --help says more\n")
        print("\n".join(f"  {command:<10} {what}" for command, what in COMMANDS.items()))
        return
    or_exit(_check, name)
    importlib.import_module(f"jopd.{name}").main(rest)


def _check(name: str) -> None:
    if name not in COMMANDS:
        raise ValueError(
            f"{name} is no command{did_you_mean(name, COMMANDS)}: {', '.join(COMMANDS)}"
        )


if __name__ == "__main__":
    main()
