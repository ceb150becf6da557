import subprocess
import sys

import pytest

from jopd.show import main
from tests.page.runs import write_run


def test_a_run_has_its_page_beside_it_and_several_have_one_here(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first, second = write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=1)
    main([str(first)])
    assert (first / "report.html").read_text().startswith("<!doctype html>")
    main([str(first), str(second)])
    assert "written: comparison.html" in capsys.readouterr().out
    main([str(second), "--output", str(tmp_path / "mine.html")])
    assert (tmp_path / "mine.html").is_file() and not (second / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "missing holds no run"),
        (["a", "--output", "no/such/folder/page.html"], "output=no/such/folder/page.html can't be"),
        (["a", "--live", "99999"], "live=99999 can't be listened on"),
        (["a", "--live", "0", "--output", "page.html"], "output=page.html: --live 0 serves"),
        ([], "name the folder of a run"),
        (["s3://bucket/run"], "gs://BUCKET/RUN"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "a")
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_a_page_that_follows_says_where_it_is(tmp_path):
    folder = write_run(tmp_path / "a")
    command = [sys.executable, "-m", "jopd.show", str(folder), "--live", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        process.terminate()
