"""`python -m jopd.methods`: every method in the survey's six variables, as its default settings
have them.
"""

import dataclasses

import tyro

from jopd import losses
from jopd.training import console


@dataclasses.dataclass(frozen=True)
class Methods:
    """Nothing to set."""


HEADER = ("method", "source", *losses.Variables._fields)


def rows() -> list[tuple[str, ...]]:
    """A row a method under HEADER."""
    methods = [losses.get(name) for name in losses.names()]
    return [(method.name, method.source, *method.variables()) for method in methods]


def markdown() -> str:
    """The table as the README has it."""
    lines = [HEADER, ["---"] * len(HEADER), *((f"`{name}`", *rest) for name, *rest in rows())]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(arguments: list[str] | None = None) -> None:
    """Prints the table."""
    tyro.cli(Methods, args=arguments, prog="python -m jopd.methods", description=__doc__)
    console.table(
        HEADER,
        rows(),
        title="methods (grades: P read in the paper, S secondary sources, R reconstruction)",
    )


if __name__ == "__main__":
    main()
