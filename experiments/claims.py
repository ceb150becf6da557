"""What the papers claim, and what we saw: the README's table, made of the ledgers.

    python experiments/claims.py            prints it
    python experiments/claims.py --write    puts it into README.md

A claim is that one cell of a study has more of a measure than another. What decides is the 95 %
interval of their difference, over seeds and, paired, over problems: all of it on the claim's side
is "reproduced", all on the other "refuted here"; with 0 in it, or with fewer than SEEDS seeds,
"can't tell". To a question that no paper answers, a control's among them, the answers are "yes" and
"no". No verdict is written by hand.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grid
from intervals import Interval, mean
from ledger import BEFORE, Entry
from study_tables import bracketed, changed, markdown, problems_of, unit, value_of, with_tables

from jopd.diagnostics.measures import amount

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
BEGIN = "<!-- claims, made of the ledgers, from here -->"
SEEDS = 3
WORLDS = {
    "ar_opd": "a baby model that teaches itself, made to slip and to leak",
    "edge_fact": "SmolLM2-135M, a private fact",
    "topd": "baby student and teacher, arithmetic",
    "leaderboard": "baby student and teacher, arithmetic",
}


class Claim(NamedTuple):
    """That `more` has more of a measure than `less`.

    Attributes:
      paper: who claims it; empty where the question is ours.
      words: what is claimed.
      number: the paper's, in its own unit and on its own model; empty where it has none.
      study, more, less: cells.
      measure: a column of the study.
    """

    paper: str
    words: str
    number: str
    study: str
    more: str
    less: str
    measure: str


ACCURACY, SHORTCUTS = "judge/accuracy", "judge/shortcut_rate"
FACT, KL = "judge/fact/accuracy", "judge/ordinary/kl"
CLAIMS = (
    Claim(
        "AR-OPD",
        "the anchored residual (λ 0.6) is more accurate than Full OPD",
        "70.3 (of λ 0.6 and 0.8) against 67.9 %",
        *("ar_opd", "λ 0.6", "full", ACCURACY),
    ),
    Claim(
        "AR-OPD",
        "Full OPD is more accurate than Partial",
        "67.9 against 65.2 %",
        *("ar_opd", "full", "partial", ACCURACY),
    ),
    Claim(
        "AR-OPD",
        "Full OPD takes more shortcuts than λ 0.6",
        "23 against 18 of 5,000",
        *("ar_opd", "full", "λ 0.6", SHORTCUTS),
    ),
    Claim(
        "AR-OPD",
        "on-policy (Full) beats SFT on the reference solutions",
        "67.9 against 62.4 %",
        *("ar_opd", "full", "sft", ACCURACY),
    ),
    Claim(
        "AR-OPD",
        "λ beyond 1 is worse than 0.6 (AMC23)",
        "50 against 57.5 %",
        *("ar_opd", "λ 0.6", "λ 1.2", ACCURACY),
    ),
    Claim(
        "",
        "Full OPD needs this problem's solution, not just one",
        "",
        *("ar_opd", "full", "full, another's solution", ACCURACY),
    ),
    Claim(
        "",
        "Full OPD beats pushing down one's own least likely tokens, without any teacher",
        "",
        *("ar_opd", "full", "no teacher", ACCURACY),
    ),
    Claim(
        "",
        "Full OPD by the whole vocabulary (forward KL) beats it by sampled tokens (reverse KL)",
        "",
        *("ar_opd", "full", "full, sampled tokens", ACCURACY),
    ),
    Claim(
        "EDGE-OPD",
        "guided rollouts, unmasked, teach what unguided ones don't",
        "66.7 against 0 % (a name)",
        *("edge_fact", "guided", "unguided", FACT),
    ),
    Claim(
        "EDGE-OPD",
        "EDGE-OPD, guided and masked, teaches what unguided tokens don't",
        "56.2 against 0 % (a name)",
        *("edge_fact", "edge", "unguided", FACT),
    ),
    Claim(
        "EDGE-OPD",
        "the mask costs some of what is learnt",
        "66.7 against 56.2 %",
        *("edge_fact", "guided", "edge", FACT),
    ),
    Claim(
        "EDGE-OPD",
        "the mask keeps the rest nearer to the original",
        "",
        *("edge_fact", "guided", "edge", KL),
    ),
    Claim(
        "",
        "the evidence chooses better than chance does, as many tokens",
        "",
        *("edge_fact", "edge", "guided, random mask", FACT),
    ),
    Claim(
        "",
        "the full vocabulary learns the fact unguided",
        "",
        *("edge_fact", "full vocabulary", "unguided", FACT),
    ),
    Claim(
        "TOPD",
        "transport targets (static embeddings, λ 0.1; the paper's is not stated) beat OPD",
        "52.2 against 47.8 %",
        *("topd", "embeddings, 0.1", "opd", ACCURACY),
    ),
    Claim(
        "TOPD",
        "transport targets (contextual states, λ 0.1) beat OPD",
        "52.2 against 47.8 %",
        *("topd", "states, 0.1", "opd", ACCURACY),
    ),
    Claim(
        "",
        "with transport targets (static embeddings, λ 0.1) reverse KL to the teacher ends higher",
        "",
        *("topd", "embeddings, 0.1", "opd", "judge/kl"),
    ),
    Claim(
        "",
        "transport targets (static embeddings) beat the teacher's window as it stands",
        "",
        *("topd", "embeddings, 0.1", "the teacher's window (control), 0.1", ACCURACY),
    ),
    Claim(
        "",
        "the same at λ 1",
        "",
        *("topd", "embeddings, 1", "the teacher's window (control), 1", ACCURACY),
    ),
    Claim(
        "TOPD",
        "capping the loss where futures agree does less harm than where they differ",
        "48.2 against 42.1 %",
        *("topd", "low transport capped", "high transport capped", ACCURACY),
    ),
    Claim(
        "",
        "RLSD ends higher with the verifier's reward than with a coin's",
        "",
        *("leaderboard", "rlsd", "rlsd, coin toss", ACCURACY),
    ),
    Claim(
        "",
        "immediate credit beats return-to-go at 24 rows a step",
        "",
        *("leaderboard", "opd_pg", "opd_pg, return-to-go", ACCURACY),
    ),
    Claim(
        "",
        "GAE, with its critic and λ 0.95, beats return-to-go",
        "",
        *("leaderboard", "gae_opd", "opd_pg, return-to-go", ACCURACY),
    ),
    Claim(
        "",
        "counterfactual routing beats plain suppression, each at its chosen rate",
        "",
        *("leaderboard", "cr_opd", "opd_pg", ACCURACY),
    ),
    Claim(
        "",
        "OPD by the whole vocabulary beats OPD by sampled tokens",
        "",
        *("leaderboard", "opd", "opd_pg", ACCURACY),
    ),
    Claim(
        "",
        "reverse KL beats forward KL, both on the student's own words",
        "",
        *("leaderboard", "opd", "opd, forward KL", ACCURACY),
    ),
    Claim(
        "",
        "SFT on perfect reference solutions beats OPD",
        "",
        *("leaderboard", "sft", "opd", ACCURACY),
    ),
    Claim(
        "",
        "a baseline (vOPD) beats immediate credit without one",
        "",
        *("leaderboard", "vopd", "opd_pg", ACCURACY),
    ),
    Claim(
        "",
        "taught by itself, AR-OPD (λ 0.6) beats Full OPD over the whole vocabulary (OPSD)",
        "",
        *("leaderboard", "ar_opd, self", "opsd, self", ACCURACY),
    ),
)


def verdict(change: Interval, ours: bool = False) -> str:
    """What the interval of `more` less `less` says of a paper's claim, or of our own question."""
    if change.seeds < SEEDS:
        return f"can't tell: {change.seeds} of {SEEDS} seeds"
    if change.low > 0:
        return "yes" if ours else "reproduced"
    if change.high < 0:
        return "no, the other way round" if ours else "refuted here"
    return "can't tell: the interval holds 0"


def shown(measure: str, entries: list[Entry]) -> str:
    problems = problems_of(entries, measure)
    if problems is None:
        values = [value for entry in entries if (value := value_of(entry, measure)) is not None]
        return amount(measure, sum(values) / len(values))
    return amount(measure, mean(*problems).value)


def marks(study, choices: Mapping[str, Mapping[str, float]], entries: Sequence[Entry]) -> set[str]:
    """Of a cell: `*`, its learning rate is the lowest or the highest of those that were tried; `†`,
    at every one of them it was below the untrained model, where the rate was chosen.
    """
    (cell,), (untrained,) = {it.cell for it in entries}, choices[BEFORE].values()
    found = {
        "*": entries[0].rate in (study.RATES[0], study.RATES[-1]),
        "†": max(choices[cell].values()) < untrained,
    }
    return {mark for mark, holds in found.items() if holds}


def rows() -> list[list[str]]:
    """A row a claim."""
    found: dict[str, dict[str, list[Entry]]] = {}
    choices: dict[str, dict[str, dict[str, float]]] = {}
    studies: dict[str, Any] = {}
    table = [["who", "claim", "the paper", "here", "difference, 95 % interval", "verdict", "page"]]
    for claim in CLAIMS:
        path = HERE / f"{claim.study}.py"
        if claim.study not in studies:
            study = studies[claim.study] = grid.load(path)
            found[claim.study] = grid.on_file(path, study, [*study.CELLS])
            choices[claim.study] = grid.choices(path, study, [*study.CELLS])
        who = claim.paper or "our question"
        more, less = (found[claim.study][cell] for cell in (claim.more, claim.less))
        change = changed(claim.measure, less, more)
        if change is None:
            command = f"`python experiments/grid.py experiments/{claim.study}.py`"
            table.append([who, claim.words, claim.number, "", "", "not run yet", command])
            continue
        sides = f"{shown(claim.measure, more)} against {shown(claim.measure, less)}"
        interval = bracketed(claim.measure, change.value, change.low, change.high, sign="+")
        here = f"{sides} {unit(claim.measure)}"
        says = verdict(change, ours=not claim.paper)
        of_cells = [marks(studies[claim.study], choices[claim.study], of) for of in (more, less)]
        says += "".join(sorted(set().union(*of_cells)))
        page = f"[{WORLDS[claim.study]}](experiments/{claim.study}.md)"
        table.append([who, claim.words, claim.number, here, interval, says, page])
    return table


def with_table(readme: str) -> str:
    """The README with its table made anew, between the two marks."""
    note = (
        "\\* The learning rate of one of the two is the lowest or the highest of those tried: "
        "beyond it may lie a better one. † One of the two is below the untrained model at every "
        "rate tried, where rates are chosen: by how much depends on the lowest of them. Of so many "
        "intervals of 95 % one or two will miss."
    )
    return with_tables(readme, f"{markdown(rows())}\n\n{note}", BEGIN)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="into README.md")
    if parser.parse_args().write:
        README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(markdown(rows()))


if __name__ == "__main__":
    main()
