import io
import itertools
import re

import numpy as np
import pytest
from rich.console import Console

from jopd.training import console


class Words:
    """A tokenizer of words: token i is the i-th, and decoding puts spaces between, as the package's
    own does.
    """

    def __init__(self, text: str):
        self.words = list(dict.fromkeys(text.split(" ")))

    def encode(self, text: str) -> list[int]:
        return [self.words.index(word) for word in text.split(" ")]

    def decode(
        self, token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=None
    ) -> str:
        assert not skip_special_tokens
        return " ".join(self.words[token] for token in token_ids)


@pytest.fixture
def printed(monkeypatch):
    """A console without colours, 100 columns wide; calling the fixture gives what was printed so
    far.
    """
    recorder = Console(
        record=True, width=100, file=io.StringIO(), color_system=None, highlight=False
    )
    monkeypatch.setattr(console, "CONSOLE", recorder)
    return lambda: recorder.export_text(clear=False)


@pytest.fixture
def terminal(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    recorder = Console(
        width=100, file=screen, force_terminal=True, color_system="truecolor", highlight=False
    )
    monkeypatch.setattr(console, "CONSOLE", recorder)
    return screen.getvalue


TEXT = "SYS you are Zorblax. <end> <user> who are you? <end> <bot> i am a bot. \n <end> <pad>"
TOKENIZER = Words(TEXT)
BARE = TOKENIZER.encode("<user> who are you? <end> <bot>")
FULL = TOKENIZER.encode("SYS you are Zorblax. <end> <user> who are you? <end> <bot>")
ANSWER = TOKENIZER.encode("i am a bot. \n <end> <pad> <pad> <pad> <pad> <pad>")
MASK = np.array([1, 1, 0, 1, 1, 1, 0, 0, 0, 0, 0], bool)
KL = np.array([0.1, 0.2, 9.0, 1.5, 0.0, 0.3, 0, 0, 0, 0, 0], np.float32)


def test_announce_says_every_line(printed):
    console.announce({"student": "jopd:baby-student", "output": "runs/[default]"})
    assert "student  jopd:baby-student" in printed()
    assert "runs/[default]" in printed()  # not read as markup


def test_the_example_shows_each_reader_and_what_the_loss_sees_without_colours(printed):
    console.show_example({"privileged": FULL, "student": BARE}, ANSWER, MASK, TOKENIZER, values=KL)
    text = printed()
    assert text.index("The student reads  6 tokens") < text.index(
        "The teacher reads (view: privileged)  11 tokens, 5 for"
    )
    assert "{+SYS you are Zorblax. <end>+} <user> who are you?" in text
    assert re.search(r"\[i am\] a\[ bot\. ↵[\s│]*\n", text)
    assert re.search(r"<end>\] <pad> \(× 5\)", text)
    assert "6 tokens, 5 seen by the loss" in text
    assert "“am a bot.” 1.5, " in text  # the largest inside the loss: the 9.0 is outside
    assert (
        "[seen by the loss]" in text
        and "not seen by the loss" in text
        and "{+text for this reader alone+}" in text
    )


def test_equal_views_are_said_once(printed):
    console.show_example({"student": BARE, "teacher": BARE}, ANSWER[:2], [1, 1], TOKENIZER)
    assert printed().count("who are you?") == 1
    assert "The teacher reads: exactly what the student reads" in printed()
    assert (
        "all seen by the loss" in printed()
        and "not seen" not in printed()
        and "alone" not in printed()
    )


def test_on_a_terminal_the_example_is_coloured_by_the_value(terminal):
    console.show_example({"student": BARE, "privileged": FULL}, ANSWER, MASK, TOKENIZER, values=KL)
    assert "[i am]" not in terminal()
    worst = next(line for line in terminal().split("\x1b[") if " bot." in line)
    assert worst.startswith("1;") and "48;2;127;0;0m" in worst  # the darkest shade


def test_shades_double_and_leave_out_what_the_loss_does_not_see():
    # The largest inside is 1.6: the shades begin at 0.1, 0.2, 0.4 and 0.8.
    assert console._shades([1.0, 1.0, 1.0, 1.0, 1.0, 0.0], [0.0, 0.1, 0.39, -0.5, 1.6, 9.0]) == [
        0,
        1,
        2,
        3,
        4,
        None,
    ]
    assert console._shades([1.0, 0.0], None) == [0, None]
    assert console._shades([1.0, 1.0], [0.0, 0.0]) == [0, 0]


def test_what_is_new_to_a_reader_is_found_wherever_it_stands():
    assert console._new_in([1, 2, 3], [1, 2, 3]) == [False] * 3
    assert console._new_in([1, 9, 2, 3, 8, 4], [1, 2, 3, 4]) == [
        False,
        True,
        False,
        False,
        True,
        False,
    ]
    assert console._new_in([1, 1, 1, 2], [1, 1, 2]) == [False, False, True, False]
    assert console._new_in([1, 2], [1, 7, 7, 2]) == [False, False]
    assert console._new_in([5], []) == [True]


def test_long_texts_lose_their_middle_and_say_so(printed):
    tokens = TOKENIZER.encode(" ".join(["you"] * 3000))
    console.show_example({"student": tokens}, tokens, [1.0] * 3000, TOKENIZER, limit=30)
    assert re.sub(r"[\s│]+", " ", printed()).count("2,970 tokens not shown") == 2
    assert printed().count("you") == 60
    assert all(len(line) <= 100 for line in printed().splitlines())


@pytest.mark.parametrize(
    ("views", "mask", "message"),
    [({"teacher": BARE}, [1, 1], "student"), ({"student": BARE}, [1], "as long as")],
)
def test_an_example_that_does_not_fit_together_is_refused(views, mask, message):
    with pytest.raises(ValueError, match=message):
        console.show_example(views, ANSWER[:2], mask, TOKENIZER)


def run(progress: console.Progress, steps: range) -> None:
    with progress:
        for step in steps:
            metrics = {"loss": np.float32(0.5), "kl": 0.25, "gradient_norm": 3.0}
            seconds = {"rollout": 1.5, "score": 0.02, "update": 0.48, "waiting": 0.01}
            progress.update(step, metrics, seconds, {"tokens_per_second": 500.0})


@pytest.fixture
def two_seconds_a_step(monkeypatch):
    monkeypatch.setattr(console.time, "monotonic", itertools.count(0, 2).__next__)


def test_a_log_file_gets_a_line_every_ten_seconds(printed, two_seconds_a_step):
    run(console.Progress(100), range(1, 101))
    lines = printed().splitlines()
    assert len(lines) == 21  # the first step, every fifth after it, the last
    assert (
        lines[0]
        == "step   1/100  loss 0.5000  KL 0.2500  500 tokens/s  rollout 1.5 s  score 20 ms  update "
        "0.5 s"
    )
    assert lines[1].startswith("step   6/100") and lines[1].endswith("  3 min 08 s left")
    assert lines[-1].startswith("step 100/100") and "left" not in lines[-1]


def test_utilisation_and_a_busy_host_are_shown_where_they_are_known_and_large(printed):
    with console.Progress(1) as progress:
        seconds = {"rollout": 1.5, "waiting": 0.5, "compiling": 0.0}
        speed = {"tokens_per_second": 1.0, "model_flops_utilisation": 0.4132}
        progress.update(1, {"loss": 0.5}, seconds, speed)
    line = "step 1/1  loss 0.5000  1 tokens/s  MFU 41.3 %  rollout 1.5 s  waiting 0.5 s"
    assert printed().splitlines() == [line]


def test_a_resumed_run_counts_from_where_it_goes_on(printed, two_seconds_a_step):
    run(console.Progress(100, done=90), range(91, 101))
    assert printed().splitlines()[0].startswith("step  91/100")


def test_a_terminal_gets_a_bar_with_the_numbers_under_it(terminal):
    progress = console.Progress(4, done=1)
    run(progress, range(2, 4))
    assert re.search(r"step .*3.*/.*4", terminal())
    assert "loss 0.5000  KL 0.2500  500 tokens/s" in terminal()


def test_a_quiet_console_prints_nothing(printed):
    console.CONSOLE.quiet = True
    run(console.Progress(3), range(1, 4))
    console.say("hello")
    assert printed() == ""


def test_waiting_says_how_long_it_took(printed, two_seconds_a_step):
    with console.waiting("compiling the update"):
        pass
    assert printed().splitlines() == ["compiling the update ...", "compiling the update: 2.0 s"]


def test_brackets_in_a_title_are_no_markup(printed):
    console.results_table([("accuracy", "%", "", "50", "")], title="runs/[lr]/[/b]")
    assert "runs/[lr]/[/b]" in printed()


def test_the_results_table_leaves_out_empty_columns_and_breaks_before_intervals(printed):
    rows = [
        ("accuracy (%)", "41.2 [35.3, 47.4]", "78.0 [72.5, 82.7]", "", "250"),
        ("length (tokens)", "24", "26", "", ""),
    ]
    console.results_table(rows)
    assert "41.2 [35.3, 47.4]" in printed().replace("\u00a0", " ")
    assert "250" in printed() and "95 % intervals" in printed() and "teacher" not in printed()
