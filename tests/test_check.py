import dataclasses

import pytest

from jopd import check, losses


def test_a_teacher_that_is_the_student_teaches_nothing_and_what_differs_says_why(capsys):
    check.main(["identity"])
    said = dict(line.split(": ", 1) for line in capsys.readouterr().out.strip().split("\n"))
    assert set(said) == set(losses.names())
    others = {name for name, verdict in said.items() if ": passed" not in verdict}
    assert "its windows should not be 0" in said["topd"]
    assert others == {"sft", "rlsd", "gae_opd", "entropy_opd"}
    assert all(
        "reads no teacher" in said[name] or "should not be 0 there: " in said[name]
        for name in others
    )


def test_a_method_that_is_not_zero_there_is_found(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Entropic(losses.METHODS["opd"]):
        """Adds the student's entropy to the divergence: the gradient is not zero at the teacher."""

        def token_terms(self, student_logits, teacher_logits, tokens, extras):
            terms = super().token_terms(student_logits, teacher_logits, tokens, extras)
            return terms | {"divergence": terms["divergence"] + terms["student_entropy"]}

    monkeypatch.setitem(losses.METHODS, "opd", Entropic)
    with pytest.raises(SystemExit) as stopped:
        check.main(["identity", "--method", "opd"])
    assert stopped.value.code == 1


def test_an_unknown_method_is_named(capsys):
    with pytest.raises(SystemExit):
        check.main(["identity", "--method", "opdd"])
    assert "did you mean 'opd'" in capsys.readouterr().err


def test_the_check_of_a_device_takes_no_method(capsys):
    with pytest.raises(SystemExit):
        check.main(["device", "--method", "opd"])
    assert "method=opd has no effect on the check of a device" in capsys.readouterr().err


def test_a_method_of_ones_own_is_checked(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        "import dataclasses\n"
        "from jopd.losses.opd import OPD\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Mine(OPD):\n"
        "    name = 'mine'\n"
        "    source = 'ours'\n",
        encoding="utf-8",
    )
    check.main(["identity", "--method", f"{tmp_path / 'mine.py'}:Mine"])
    assert "passed" in capsys.readouterr().out
