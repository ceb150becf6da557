import pathlib

from jopd import losses, methods


def test_every_method_has_a_row_in_six_words():
    rows = methods.rows()
    assert [row[0] for row in rows] == list(losses.names())
    assert all(len(row) == 8 and all(row) for row in rows)


def test_the_readme_shows_the_table_as_it_is():
    readme = pathlib.Path(__file__).parent.parent / "README.md"
    assert methods.markdown() in readme.read_text()
