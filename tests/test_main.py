"""The console command."""

import subprocess
import sys

import pytest

from jopd.__main__ import COMMANDS, main


def test_every_command_says_what_it_does(capsys):
    main([])
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in COMMANDS)


def test_an_unknown_command_is_answered_with_the_nearest(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["trian"])
    assert "trian is no command (did you mean 'train'?)" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_help(name):
    command = [sys.executable, "-m", "jopd", name, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "usage: python -m jopd" in done.stdout
