"""Verdicts follow from intervals, and the README holds what the ledgers give."""

from tests.scripts import EXPERIMENTS, load, neighbour

CLAIMS = neighbour("claims")
INTERVALS = neighbour("intervals")


def test_a_verdict_is_what_the_interval_says():
    of = lambda low, high, seeds: CLAIMS.verdict(INTERVALS.Interval(0.0, low, high, seeds))
    assert of(0.1, 2.0, 3) == "reproduced"
    assert of(-2.0, -0.1, 3) == "refuted here"
    assert of(-0.1, 2.0, 3) == "can't tell: the interval holds 0"
    assert of(0.1, 2.0, 2) == "can't tell: 2 of 3 seeds"
    of_ours = lambda low, high: CLAIMS.verdict(INTERVALS.Interval(0.0, low, high, 3), ours=True)
    assert (of_ours(0.1, 2.0), of_ours(-2.0, -0.1)) == ("yes", "no, the other way round")


def test_every_claim_is_of_cells_and_columns_that_there_are():
    for claim in CLAIMS.CLAIMS:
        study = load(EXPERIMENTS / f"{claim.study}.py")
        assert {claim.more, claim.less} <= {*study.CELLS} and claim.measure in study.COLUMNS
        assert claim.study in CLAIMS.WORLDS


def test_the_readme_holds_what_the_ledgers_give():
    readme = CLAIMS.README.read_text(encoding="utf-8")
    assert CLAIMS.with_table(readme) == readme
