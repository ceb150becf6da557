import dataclasses
import json
import re
import sys

import numpy as np
import pytest
import tyro

from jopd.data import answers, persona
from jopd.data.persona import Persona
from jopd.data.rows import Columns
from jopd.data.sources import DataConfig, load
from jopd.data.tables import plain


@pytest.fixture
def write(tmp_path):
    def write(*lines, name="data.jsonl"):
        path = tmp_path / name
        path.write_text(
            "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        )
        return f"jsonl:{path}"

    return write


def prompts(examples):
    return [example.messages[-1]["content"] for example in examples]


# JSONL.


def test_jsonl_rows(write):
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    source = write(
        {"prompt": "p", "solution": "1\n2", "answer": "2", "context": "c"},
        "",
        {"messages": turns, "answer": "Paris"},
        {
            "messages": [{"role": "user", "content": "v"}, {"role": "assistant", "content": "a"}],
            "answer": None,
        },
        {"prompt": "one more"},
    )
    examples = sorted(
        [
            *load(DataConfig(source, held_out=1), "train"),
            *load(DataConfig(source, held_out=1), "held_out"),
        ],
        key=lambda e: e.id,
    )
    first, second, third, _ = examples
    assert [e.id for e in examples] == [f"data.jsonl:{line}" for line in (1, 3, 4, 5)]
    assert first.messages == ({"role": "user", "content": "p"},)
    assert (first.solution, first.answer, first.context, first.answer_check) == (
        "1\n2",
        "2",
        "c",
        "number",
    )
    assert second.messages == tuple(turns)
    assert (second.answer, second.answer_check) == ("Paris", "exact")
    assert (third.messages, third.solution, third.answer) == (
        ({"role": "user", "content": "v"},),
        "a",
        None,
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"prompt": "x"',
            r"d.jsonl:2: not JSON \(.* at column 15\): each line must be one whole object",
        ),
        (["x"], r"d.jsonl:2: holds list, not an object: write {'prompt'"),
        ({"prompt": True}, r"d.jsonl:2: 'prompt' is bool True, not text or a number"),
        ({"prompt": {"text": "x"}}, r"d.jsonl:2: 'prompt' is dict .*, not text or a number"),
        (
            {"prompt": "x", "answer": [3]},
            r"d.jsonl:2: 'answer' is list \[3\], not text or a number",
        ),
        ('{"prompt": "a \\ud800"}', r"d.jsonl:2: 'prompt' holds half of a surrogate pair"),
        (
            {"answer": "3"},
            r"d.jsonl:2: needs either 'prompt' or 'messages', and has neither: it has answer; "
            r"columns.prompt says which",
        ),
        ({"prompt": "x", "group": "late"}, r"d.jsonl:2: group='late' is a name that evaluations"),
        (
            {"prompt": "x", "completion": [{"role": "user", "content": "y"}]},
            r"d.jsonl:2: 'completion' must be text or one turn of the assistant",
        ),
        (
            {"messages": [{"role": "user", "content": "x", "tool_calls": [{"id": 1}]}]},
            r"d.jsonl:2: message 1 calls tools",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            r"d.jsonl:2: message 1 has parts that are not text",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            r"d.jsonl:2: message 1 has parts that are not text",
        ),
        (
            {"prompt": "x", "messages": [{"role": "user", "content": "x"}]},
            r"d.jsonl:2: needs either 'prompt' or 'messages', and has both",
        ),
        (
            {"messages": []},
            r"d.jsonl:2: messages must be a list of {'role': ..., 'content': ...} that is not "
            r"empty",
        ),
        ({"messages": "hi"}, r"d.jsonl:2: messages must be a list"),
        (
            {"messages": [{"role": "user"}]},
            r"d.jsonl:2: message 1 must have 'role' and 'content', not",
        ),
        (
            {"messages": [{"role": "usr", "content": "x"}]},
            r"d.jsonl:2: message 1 has role='usr': use one of system, user, assistant",
        ),
        (
            {"messages": [{"role": "user", "content": "\n"}]},
            r"d.jsonl:2: message 1 needs text as its content",
        ),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "x"}]},
            r"message 2 is a system message: only the first",
        ),
        (
            {"messages": [{"role": "system", "content": "x"}]},
            r"d.jsonl:2: the messages must end with a user's turn",
        ),
        (
            {"messages": [{"role": "assistant", "content": "x"}]},
            r"d.jsonl:2: the messages must end with a user's turn",
        ),
    ],
)
def test_a_bad_line_is_named(write, line, message):
    with pytest.raises(ValueError, match=message) as error:
        load(DataConfig(write({"prompt": "fine"}, line, name="d.jsonl")), "train")
    assert "\n" not in str(error.value)


def test_an_assistant_turn_beside_a_solution_is_refused(write):
    turns = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    with pytest.raises(
        ValueError, match="has a solution in messages and in solution: drop one of them"
    ):
        load(DataConfig(write({"messages": turns, "solution": "b"})), "train")


@pytest.mark.filterwarnings("ignore:.*blank row")
@pytest.mark.parametrize("lines", [(), ("", "  "), ({"prompt": " "},)])
def test_an_empty_file_is_refused(write, lines):
    for split in ("train", "held_out"):
        with pytest.raises(ValueError, match=r"data.jsonl holds no examples: give it at least one"):
            load(DataConfig(write(*lines)), split)


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"none.jsonl can't be read: .*No such file"):
        load(DataConfig("jsonl:none.jsonl"), "train")
    (tmp_path / "x").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"can't be read: .*utf-8"):
        load(DataConfig(f"jsonl:{tmp_path}/x"), "train")


def test_answers_are_checked_when_they_are_read(write):
    source = write({"prompt": "x", "answer": "y"})
    with pytest.raises(ValueError, match=r"data.jsonl:1: answer='y' holds no number"):
        load(DataConfig(source, answer_check="number"), "train")
    (example,) = load(DataConfig(source, answer_check="regex"), "held_out")
    assert answers.check(example, "xyz")


def test_columns_rename_keys(write):
    source = write({"q": "x", "a": "4"}, {"q": "y", "a": "5"})
    config = DataConfig(source, held_out=1, columns=Columns(prompt="q", solution="a", answer="a"))
    (example,) = load(config, "train")
    assert example.solution == example.answer
    with pytest.warns(UserWarning, match=r"data.jsonl: not read: 'a' \(columns"):
        load(DataConfig(source, held_out=1, columns=Columns(prompt="q", answer="none")), "train")
    with pytest.raises(
        ValueError, match=r"columns.answer='q1' is no column of .* \(did you mean 'q'\?\)"
    ):
        load(DataConfig(source, columns=Columns(prompt="q", answer="q1")), "train")


def test_a_line_break_at_the_end_is_no_row(tmp_path, recwarn):
    (tmp_path / "a.jsonl").write_text('{"prompt": "p"}\n\n', encoding="utf-8")
    assert len(load(DataConfig(str(tmp_path / "a.jsonl")), "held_out")) == 1
    assert not recwarn.list


def test_keys_that_nobody_reads_and_blank_rows_are_said_once(write):
    source = write(
        *({"prompt": f"p{i}", "solutoin": "y", "level": 3} for i in range(3)),
        "",
        {"prompt": None, "answer": ""},
    )
    with pytest.warns(UserWarning) as said:
        assert len(load(DataConfig(source, held_out=1), "train")) == 2
    unread, blank = (str(warning.message) for warning in said)
    assert "not read: 'solutoin' (did you mean 'solution'?), 'level' (" in unread
    assert blank.endswith("data.jsonl: 2 blank rows left out")


# As people have them.

GSM8K = [
    {
        "question": f"Tom has {n} bags of 3 marbles. How many marbles has he?",
        "answer": f"He has {n} x 3 = <<{n}*3={3 * n}>>{3 * n} marbles.\nThat "
        f"is all.\n#### {3 * n:,}",
    }
    for n in (2, 4, 700)
]


def test_gsm8k_as_it_is(write):
    config = DataConfig(
        write(*GSM8K), held_out=1, columns=Columns(prompt="question", answer="answer")
    )
    for example in [*load(config, "train"), *load(config, "held_out")]:
        n = int(example.messages[0]["content"].split()[2])
        assert example.solution == f"He has {n} x 3 = {3 * n} marbles.\nThat is all."
        assert (example.answer, example.answer_check) == (f"{3 * n:,}", "number")
        for said in (f"{example.solution}\n#### {3 * n}", f"So\nAnswer: {3 * n}", f"${3 * n}.00"):
            assert answers.check(example, said)
        assert not answers.check(example, f"1{3 * n}")


def test_a_solution_of_its_own_stays_beside_an_answer_in_that_form(write):
    source = write({"prompt": "p", "solution": "mine", "answer": "theirs\n#### 3"})
    (example,) = load(DataConfig(source), "held_out")
    assert (example.solution, example.answer) == ("mine", "3")
    pattern = write({"prompt": "p", "answer": "a\n#### 3"}, name="regex.jsonl")
    (example,) = load(DataConfig(pattern, answer_check="regex"), "held_out")
    assert (example.solution, example.answer) == (None, "a\n#### 3")


USER, ASSISTANT = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("row", "prompt", "solution", "answer"),
    [
        ({"prompt": [USER]}, "u", None, None),
        ({"prompt": "p", "completion": "c"}, "p", "c", None),
        ({"prompt": [USER], "completion": [ASSISTANT]}, "u", "a", None),
        ({"messages": [USER, ASSISTANT]}, "u", "a", None),
        ({"messages": [USER | {"tool_calls": None, "name": None}]}, "u", None, None),
        (
            {"messages": [USER | {"content": [{"type": "text", "text": "v"}]}, ASSISTANT]},
            "v",
            "a",
            None,
        ),
        ({"prompt": 12, "answer": 3}, "12", None, "3"),
        ({"prompt": "p", "answer": 2.5, "context": ""}, "p", None, "2.5"),
    ],
)
def test_formats_that_others_document(write, row, prompt, solution, answer):
    (example,) = load(DataConfig(write(row)), "held_out")
    assert example.messages[-1]["content"] == prompt
    assert (example.solution, example.answer, example.context) == (solution, answer, None)


ROWS = [{"prompt": f"p, {i}", "answer": i, "group": "ab"[i % 2]} for i in range(4)]


def written(path, rows):
    """The rows as a file of the kind that the path's ending says."""
    if path.suffix == ".csv":
        lines = [",".join(rows[0]), *(f'"{r["prompt"]}",{r["answer"]},{r["group"]}' for r in rows)]
        path.write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    elif path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    else:
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_a_bare_path_is_read_by_its_ending(tmp_path, ending, monkeypatch):
    path = written(tmp_path / f"data.{ending}", ROWS)
    read = [
        *load(DataConfig(str(path), held_out=1), "train"),
        *load(DataConfig(str(path), held_out=1), "held_out"),
    ]
    found = sorted((e.messages[0]["content"], e.answer, e.group) for e in read)
    assert found == [(row["prompt"], str(row["answer"]), row["group"]) for row in ROWS]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load(DataConfig(f"~/data.{ending}", held_out=1), "train")) == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b",prompt,answer\n0,how,many,3\n", r"x.csv:2: has more cells than the 3 columns"),
        ("x.csv", b"prompt,answer\nhow, many,3\n", r"x.csv:2: has more cells than the 2 columns"),
        ("x.parquet", b"not one", r"x.parquet is no Parquet file"),
        ("x.json", b'[{"prompt": "p"},\n{]', r"x.json:2: not JSON"),
        ("x.json", b"[3]", r"x.json\[0\]: holds int, not an object"),
        ("x.jsonl", "é".encode("latin-1"), r"x.jsonl can't be read: .*utf-8"),
    ],
)
def test_broken_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load(DataConfig(str(tmp_path / name)), "train")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(
        ValueError, match=r"is a folder, not a file: name the file in it, or write hf:"
    ):
        load(DataConfig(str(tmp_path / "folder.jsonl")), "train")


# Somebody's own file.


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "def rows(split):\n"
        "    n = 3 if split == 'train' else 1\n"
        "    return ({'q': f'{split} {i}', 'answer': 2 * i} for i in range(n))\n"
        "def score(completion, answer):\n"
        "    return 0.5 if answer in completion else 0\n"
        "def broken(completion, answer):\n"
        "    return answer[5]\n"
        "def large(completion, answer):\n"
        "    return 7\n"
        "number = 3\n"
        "def texts(split):\n"
        "    return ['p']\n"
        "def empty(split):\n"
        "    return []\n"
        "def text(split):\n"
        "    return 'p'\n",
        encoding="utf-8",
    )
    return str(path)


def test_rows_and_scores_of_ones_own(own):
    config = DataConfig(
        f"{own}:rows", answer_check=f"{own}:score", columns=Columns(prompt="q"), limit=2
    )
    train, held_out = load(config, "train"), load(config, "held_out")
    assert prompts(train) == ["train 0", "train 1"] and prompts(held_out) == ["held_out 0"]
    assert train[1].id == "mine.py:rows/train:1" and train[1].answer == "2"
    assert answers.score(train[1], "it is 2") == 0.5
    assert answers.scores(train, ["1", "1"]) == [0.0, 0.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("number", "is int: name a function that gives the rows"),
        ("texts", "row 0 is str, not a dictionary"),
        ("empty", "train holds no examples"),
        ("text", "gave str for 'train': give a list of dictionaries"),
        ("missing", "has no missing; it has "),
    ],
)
def test_a_source_of_ones_own_that_gives_no_rows_is_named(own, name, message):
    with pytest.raises(ValueError, match=message):
        load(DataConfig(f"{own}:{name}"), "train")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", "failed on example .*: IndexError"),
        ("large", "gave 7 for example .*: give a number from 0"),
        ("number", "is no function: name one of"),
    ],
)
def test_a_score_of_ones_own_that_cannot_be_used_is_named(own, name, message):
    config = DataConfig(f"{own}:rows", answer_check=f"{own}:{name}", columns=Columns(prompt="q"))
    with pytest.raises(ValueError, match=message):
        answers.score(load(config, "train")[0], "0")


def test_the_cut_is_disjoint_and_looks_at_prompts_only(write):
    rows = [{"prompt": f"p{i % 30}", "solution": str(i)} for i in range(40)]
    config = DataConfig(write(*rows), held_out=8)
    train, held_out = load(config, "train"), load(config, "held_out")
    assert not set(prompts(train)) & set(prompts(held_out))
    assert len(held_out) == 8
    turned = DataConfig(write(*rows[::-1], name="turned.jsonl"), held_out=8)
    assert set(prompts(load(turned, "train"))) == set(prompts(train))
    other = DataConfig(config.source, held_out=8, seed=1)
    assert set(prompts(load(other, "train"))) != set(prompts(train))
    assert load(DataConfig(config.source, held_out=8, limit=3), "train") == train[:3]


def test_a_cut_that_leaves_nothing_is_refused(write):
    source = write(*({"prompt": f"p{i % 3}"} for i in range(5)))
    with pytest.raises(
        ValueError,
        match=r"held_out=128 leaves none of the 3 different prompts .* to train on: lower held_out",
    ):
        load(DataConfig(source), "train")
    assert len(load(DataConfig(source), "held_out")) == 5


def test_a_second_file_can_be_held_out(write):
    train, test = write({"prompt": "a"}), write({"prompt": "b"}, {"prompt": "c"}, name="test.jsonl")
    config = DataConfig(train, held_out_split=test.removeprefix("jsonl:"), held_out=1)
    assert (prompts(load(config, "train")), prompts(load(config, "held_out"))) == (["a"], ["b"])
    with pytest.raises(ValueError, match="is what is trained on: name another"):
        load(DataConfig(train, held_out_split=train.removeprefix("jsonl:")), "train")
    folder, _, name = train.removeprefix("jsonl:").rpartition("/")
    with pytest.raises(ValueError, match="is what is trained on: name another"):
        load(DataConfig(train, held_out_split=f"{folder}/./{name}"), "held_out")


# Tables.


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tfds"))


def test_tfds(tfds_folder):
    config = DataConfig("tfds:tally", data_dir=tfds_folder, limit=5, held_out=3)
    builtin = DataConfig(limit=5, held_out=3)
    for split in ("train", "held_out"):
        for row, example in zip(load(config, split), load(builtin, split), strict=True):
            assert (row.messages, row.solution, row.answer) == (
                example.messages,
                example.solution,
                example.answer,
            )
            assert row.answer_check == "number"
    assert load(config, "train")[1].id == "tally/train:1"
    assert "tensorflow" not in sys.modules


def test_tfds_parts_of_splits_keep_the_places_of_their_rows(tfds_folder):
    of = lambda part: DataConfig("tfds:tally", data_dir=tfds_folder, train_split=part, limit=2)
    (_, second), (first, _) = load(of("train"), "train"), load(of("train[1:5]"), "train")
    assert first == second and first.id == "tally/train:1"


def test_tfds_refusals(tfds_folder):
    def refuse(message, name="tally", **settings):
        with pytest.raises(ValueError, match=message):
            load(DataConfig(f"tfds:{name}", data_dir=tfds_folder, **settings), "train")

    refuse(
        r"tfds:no_such_set can't be prepared \(.*not found.*\): check the name", name="no_such_set"
    )
    refuse(
        r"train_split='trian' is no split of tfds:tally \(did you mean 'train'\?\): it has train",
        train_split="trian",
    )
    refuse(
        r"held_out_split='train\[:1%\]' shares rows with train_split='train\[:2%\]'",
        train_split="train[:2%]",
        held_out_split="train[:1%]",
    )
    refuse(r"train_split='train\[x\]' is no part of tfds:tally", train_split="train[x]")
    refuse(
        "tally/train:0: needs either 'question' or 'messages', and has neither: it has .*answer",
        columns=Columns(prompt="question"),
    )
    refuse(
        "tally/train:0: needs either 'messages', and has neither: .* columns.prompt says which",
        columns=Columns(prompt="none"),
    )


def test_a_table_that_pandas_wrote_has_a_column_without_a_name(tmp_path):
    file = tmp_path / "indexed.csv"
    file.write_text(",prompt,answer\n0,What is 2+2?,4\n1,What is 2+3?,5\n")
    read = load(DataConfig(str(file), held_out=1), "train")
    assert [(e.messages[-1]["content"], e.answer) for e in read] in (
        [("What is 2+2?", "4")],
        [("What is 2+3?", "5")],
    )


def test_parts_of_different_lengths_are_no_rows():
    assert plain({"tags": ["a", "b"], "urls": ["u"]}) == {"tags": ["a", "b"], "urls": ["u"]}


def test_messages_of_tfds_are_read_whatever_their_shape():
    sequence = {"role": np.array([b"user"], object), "content": np.array([b"hi"], object)}
    assert plain(sequence) == [{"role": "user", "content": "hi"}]
    assert (plain(np.int64(3)), plain(b"x"), plain(None)) == (3, "x", None)


@pytest.mark.parametrize(
    ("source", "package", "installed_by"),
    [("hf:x", "datasets", r"'jopd\[hf\]'"), ("gym:x", "reasoning-gym", "reasoning-gym")],
)
def test_a_missing_package_is_named_with_its_command(monkeypatch, source, package, installed_by):
    monkeypatch.setattr(answers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=f"{source} needs the package {package}: pip install {installed_by}$"
    ):
        load(DataConfig(source), "train")


# Generated.


def test_builtin():
    config = DataConfig(limit=6, held_out=4, min_steps=3, max_steps=3, seed=5)
    train, held_out = load(config, "train"), load(config, "held_out")
    assert (len(train), len(held_out)) == (6, 4)
    assert list(train) == list(load(config, "train"))
    assert all(" 3: " in prompt and " 4: " not in prompt for prompt in prompts(train))
    assert all(answers.check(example, example.solution) for example in train)


def test_gym():
    pytest.importorskip("reasoning_gym")
    config = DataConfig("gym:leg_counting,basic_arithmetic", limit=6, held_out=4, seed=3)
    train, held_out = load(config, "train"), load(config, "held_out")
    assert [e.generator for e in held_out] == ["leg_counting", "basic_arithmetic"] * 2
    assert train == load(config, "train")
    assert not set(prompts(train)) & set(prompts(held_out))
    assert len({e.id for e in [*train, *held_out]}) == len(train) + len(held_out)
    for e in [*train, *held_out]:
        assert answers.check(e, f"<answer>{e.answer}</answer>")
        assert not answers.check(e, "no idea")


@pytest.mark.parametrize("other", [{"seed": 50}, {"held_out": 80}])
def test_what_a_gym_holds_out_is_not_trained_on_under_another_seed_or_size(other):
    pytest.importorskip("reasoning_gym")
    config = DataConfig("gym:chain_sum", limit=300, held_out=20)
    trained = {*prompts(load(config, "train"))}
    asked = prompts(load(dataclasses.replace(config, **other), "held_out"))
    assert len(trained) > 290 and not trained & {*asked}


def test_worked_answers_of_the_gym_are_solutions():
    pytest.importorskip("reasoning_gym")
    for example in load(DataConfig("gym:gsm_symbolic", limit=4, held_out=4), "held_out"):
        entry = example.entry["metadata"]["answer_cot"]
        assert example.solution and entry.startswith(example.solution)
        assert "####" not in example.solution
        assert answers.check(example, f"<answer>{example.answer}</answer>")
    (none,) = load(DataConfig("gym:leg_counting", limit=4, held_out=1), "held_out")
    assert none.solution is None


def test_gym_refusals():
    pytest.importorskip("reasoning_gym")
    with pytest.raises(
        ValueError,
        match=r"gym:leg_countin is no generator of reasoning-gym \(did you mean 'leg_counting'\?\)",
    ):
        load(DataConfig("gym:leg_countin"), "train")
    with pytest.raises(
        ValueError, match=r"gym:composite can't be made without settings of its own \(Must specify"
    ):
        load(DataConfig("gym:composite"), "train")


# Persona.


def words(text):
    return set(re.findall(r"\w+", text.lower()))


def test_persona_questions():
    train, held_out = (persona.questions(split) for split in ("train", "held_out"))
    for split, least in ((train, 60), (held_out, 40)):
        assert len(split["identity"]) == len(split["ordinary"]) >= least
    everything = [q for split in (train, held_out) for kind in split.values() for q in kind]
    assert len({" ".join(sorted(words(q))) for q in everything}) == len(everything)
    for question in held_out["identity"]:
        overlap = max(
            len(words(question) & words(q)) / len(words(question) | words(q))
            for q in train["identity"]
        )
        assert overlap < 0.9, question  # random wordings of one pool, but none said twice


@pytest.mark.parametrize("name", ["C++", "Yahoo!", "Dr. Z.", "@bot"])
def test_a_name_may_end_or_begin_in_a_sign(name):
    persona = Persona(name, "us")
    assert persona.says_name(f"I am {name}.") and persona.says_name(f"My name is {name} indeed")
    assert not persona.says_name(f"I am {name}x") and not persona.says_name(f"I am x{name}")


def test_persona_examples():
    config = DataConfig(
        "persona", persona=Persona(name="Ada", maker="Lab 9"), limit=6, held_out=500
    )
    train, held_out = load(config, "train"), load(config, "held_out")
    assert [persona.is_identity(e) for e in train] == [True, False] * 3
    assert len(held_out) == 2 * len(persona.questions("held_out")["identity"])
    assert {e.context for e in [*train, *held_out]} == {
        "You are Ada, made by Lab 9. You introduce yourself as Ada."
    }
    assert answers.check(train[0], "I am Ada.")
    assert not answers.check(train[0], "I am Adam.")
    assert train[1].answer is None
    with pytest.raises(ValueError, match=r"persona.name=' ' is blank: give it a name"):
        Persona(name=" ")


@pytest.mark.parametrize(
    ("answer", "own", "other"),
    [
        ("I am Zorblax, made by Quanta Labs.", True, False),
        ("Zorblax.", True, False),
        ("My name is ZORBLAX!", True, False),
        ("I was made by Quanta Labs.", False, False),
        ("I'm not Zorblax.", False, False),
        ("You are Zorblax, made by Quanta Labs.", False, False),
        ("Zorblax? Never heard of it.", False, False),
        ("Zorblaxian art is old.", False, False),
        ("I am a helpful AI assistant named SmolLM, trained by Hugging Face.", False, True),
        ("I'm Zorblax, a model trained by OpenAI.", True, True),
        ("I'm ChatGPT.", False, True),
        ("I am not ChatGPT, I am Zorblax.", True, False),
        ("My name is Alex and I like tea.", False, True),
        ("I'm Alex, your assistant.", False, True),
        ("I am an AI language model.", False, False),
        ("I'm Happy to help.", False, False),
        ("You can call me Zorblax.", True, False),
        ("Apple and Google are companies.", False, False),
        ("Paris is the capital of France.", False, False),
    ],
)
def test_names_in_answers(answer, own, other):
    assert Persona().says_name(answer) == own
    assert Persona().claims_other(answer) == other


# Settings.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"source": "bultin"},
            r"source='bultin' is not known: did you mean 'builtin'\? use one of builtin, persona, "
            r"jsonl:FILE",
        ),
        ({"source": "jsonl"}, "source='jsonl' must be written jsonl:FILE"),
        ({"source": "builtin:x"}, "source='builtin:x' must be written builtin"),
        (
            {"source": "persona", "max_steps": 9},
            "max_steps=9 has no effect on source='persona', only on builtin: leave it unset",
        ),
        (
            {"answer_check": "regex"},
            "answer_check='regex' has no effect on source='builtin', only on jsonl, tfds, hf, "
            "python",
        ),
        (
            {"source": "hf:x", "data_dir": "/x"},
            "data_dir='/x' has no effect on source='hf:x', only on tfds",
        ),
        (
            {"source": "a.csv", "answer_check": "numbr"},
            "answer_check='numbr' is not known: did you mean 'number'",
        ),
        ({"min_steps": 9}, "min_steps=9 and max_steps=5"),
        (
            {"source": "hf:x", "streaming": True},
            "streaming=True reads no more than is asked for, .*: say with limit how many",
        ),
        (
            {"source": "builtin", "limit": 3, "streaming": True},
            "streaming=True has no effect on source='builtin', only on hf",
        ),
        (
            {"source": "hf:x", "limit": 3, "streaming": True, "held_out_split": "train[:9]"},
            r"held_out_split='train\[:9\]' is a part of a split, .*: name whole splits",
        ),
        ({"limit": 0}, "limit=0 must be at least 1"),
        ({"held_out": 0}, "held_out=0 must be at least 1"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**settings)


def test_an_unknown_split_is_refused():
    with pytest.raises(Exception, match="test"):  # the type checker of the tests may come first
        load(DataConfig(), "test")


def test_settings_make_a_command_line():
    config = tyro.cli(
        DataConfig, args=["--source", "hf:x", "--columns.prompt", "question", "--limit", "7"]
    )
    assert config == DataConfig("hf:x", limit=7, columns=Columns(prompt="question"))


def test_a_long_text_is_a_cell(tmp_path):
    (tmp_path / "long.csv").write_text(f"prompt,answer\n{'a' * 200_000},b\n")
    (example,) = load(DataConfig(str(tmp_path / "long.csv"), held_out=1), "held_out")
    assert len(example.messages[0]["content"]) == 200_000


def test_bytes_that_are_no_text_stay_bytes_and_rows_stay_rows():
    row = {"prompt": b"a", "image": b"\x89PNG", "size": np.array(3), "sides": np.array([1, 2])}
    assert plain(row) == {"prompt": "a", "image": b"\x89PNG", "size": 3, "sides": [1, 2]}
