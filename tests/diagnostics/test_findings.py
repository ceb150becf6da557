from jopd.diagnostics.findings import comparison, findings
from tests.diagnostics.records import EVALUATIONS, evaluation, share


def test_the_comparison_is_ready_to_print():
    rows = {row.measure.strip(): row for row in comparison(EVALUATIONS)}
    assert rows["KL to the teacher (nats)"][1:] == (
        "0.400 [0.360, 0.440]",
        "0.100 [0.090, 0.110]",
        "",
        "200",
    )
    assert rows["way to the teacher (%)"].after == "60"
    assert rows["length mean (tokens)"][1:] == ("24.5", "24.5", "25", "")


def test_a_single_evaluation_has_no_after():
    assert all(row.before and not row.after for row in comparison(EVALUATIONS[:1]))
    assert comparison([]) == []


def test_the_same_problems_are_compared_problem_by_problem():
    """103 right before and 76 after, of 200: unpaired the intervals overlap, paired 40 problems
    were lost and 13 gained, which is not chance.
    """
    before, after = evaluation(0, 103, 0.4), evaluation(40, 76, 0.4)
    after["by_problem"]["accuracy"] = [1] * 63 + [0] * 40 + [1] * 13 + [0] * 84
    said, of_kl = findings([before, after])
    assert said == (
        "Accuracy fell from 51.5 to 38.0 % on 200 held-out problems: 13 gained, 40 lost, McNemar's "
        "exact test p = 0.00027."
    )
    assert of_kl == (
        "KL to the teacher is 0.400 nats before and after on 200 held-out problems: a change of "
        "+0.000 [+0.000, +0.000] nats, so this run alone does not show a change."
    )


def test_a_change_that_chance_explains_is_not_claimed():
    before, after = evaluation(0, 80, 0.4), evaluation(40, 82, 0.4)
    after["by_problem"]["accuracy"] = [1] * 70 + [0] * 10 + [1] * 12 + [0] * 108
    said = findings([before, after])[0]
    assert "12 gained, 10 lost" in said and said.endswith("does not show a change.")


def test_without_the_problems_nothing_is_compared():
    old = [dict(evaluation(0, 80, 0.4)), dict(evaluation(40, 150, 0.1))]
    for record in old:
        del record["by_problem"]
    said = findings(old)
    assert all("How each problem came out is not on file" in sentence for sentence in said)
    other = evaluation(40, 150, 0.1)
    other["by_problem"]["problems"] = "others"
    assert "not compared" in findings([evaluation(0, 80, 0.4), other])[0]


def test_a_way_to_the_teacher_is_a_share_or_said_in_words():
    def said(right, teacher):
        lines = [{**evaluation(0, 100, 0.4), "teacher": evaluation(0, teacher, 0.0)}]
        lines.append(evaluation(40, right, 0.4))
        ways = [row for row in comparison(lines) if row.measure.strip().startswith("way")]
        return findings(lines)[0], ways

    sentence, ways = said(80, 110)
    assert ", away from the teacher's 55.0 %:" in sentence and not ways
    sentence, ways = said(160, 110)
    assert ", beyond the teacher's 55.0 %:" in sentence and not ways
    sentence, ways = said(110, 120)
    assert ", 50 % of the way to the teacher's 60.0 %:" in sentence and ways[0].after == "50"
    # Neither a change nor a lead that chance explains has a share of the way.
    for right, teacher in ((105, 120), (110, 104), (110, 90)):
        sentence, ways = said(right, teacher)
        assert f" (teacher's {teacher / 2:.1f} %):" in sentence and not ways


def test_without_the_teachers_problems_no_way_is_told():
    lines = [{**evaluation(0, 100, 0.4), "teacher": {"accuracy": share(180)}}]
    lines.append(evaluation(40, 150, 0.4))
    assert "(teacher's 90.0 %)" in findings(lines)[0]
    assert not any("way" in row.measure for row in comparison(lines))


def test_a_change_too_small_for_its_digits_is_still_a_change():
    before, after = evaluation(0, 80, 0.4), evaluation(40, 80, 0.4)
    after["kl"] = before["kl"] | {"value": 0.4002}
    after["by_problem"]["kl"] = {"sums": [3.602, 4.402] * 100, "tokens": [10] * 200}
    of_accuracy, of_kl = findings([before, after])
    assert of_accuracy == (
        "Accuracy is 40.0 % before and after on 200 held-out problems: no problem came out "
        "differently, so this run alone does not show a change."
    )
    assert of_kl.startswith("KL to the teacher rose from 0.400 nats by less than its last digit on")
    assert "+0.000" in of_kl and not of_kl.endswith("does not show a change.")
