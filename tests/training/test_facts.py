import pytest

from jopd import losses
from jopd.training import facts


@pytest.mark.parametrize("name", losses.names())
def test_the_report_grades_every_methods_formulas(name):
    said = facts.grade(losses.get(name))
    assert len(said) > 20 or name == "sft", said
