"""`hf:` sources, read by `datasets` itself from folders; the hub's answers are put in its place."""

import re

import pytest

from jopd.data import hugging_face
from jopd.data.rows import Columns
from jopd.data.sources import DataConfig, load

datasets = pytest.importorskip("datasets", reason="not installed: pip install 'jopd[hf]'")

CARD = """---
configs:
- config_name: main
  data_files:
  - {split: train, path: main/train.parquet}
  - {split: test, path: main/test.parquet}
- config_name: socratic
  data_files:
  - {split: train, path: socratic/train.parquet}
---
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten rows and three, as data files, with configurations, and as `save_to_disk` writes them."""
    root = tmp_path_factory.mktemp("sets")
    rows = lambda letter, count: datasets.Dataset.from_list(
        [{"question": f"{letter}{i}", "target": i} for i in range(count)]
    )
    splits = datasets.DatasetDict(train=rows("q", 10), test=rows("t", 3))
    for name, split in splits.items():
        split.to_parquet(root / "files" / f"{name}.parquet")
        split.to_parquet(root / "configs" / "main" / f"{name}.parquet")
    rows("s", 4).to_parquet(root / "configs" / "socratic" / "train.parquet")
    (root / "configs" / "README.md").write_text(CARD)
    splits.save_to_disk(root / "disk")
    splits["train"].save_to_disk(root / "alone")
    return root


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        cache = str(tmp_path_factory.mktemp("cache"))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        yield


def config(source, **settings):
    return DataConfig(
        f"hf:{source}", columns=Columns(prompt="question", answer="target"), **settings
    )


def prompts(source, split, **settings):
    return [e.messages[-1]["content"] for e in load(config(source, **settings), split)]


def numbered(letter, numbers):
    return [f"{letter}{i}" for i in numbers]


FORMS = pytest.mark.parametrize("form", ["files", "configs:main", "disk"])


@FORMS
def test_every_form_gives_its_splits_by_the_columns_that_are_named(folder, form):
    train = load(config(folder / form), "train")
    assert [e.messages[-1]["content"] for e in train] == numbered("q", range(10))
    assert [(e.answer, e.answer_check) for e in train] == [(str(i), "number") for i in range(10)]
    assert train[3].id == f"{str(folder / form).partition(':')[0]}/train:3"
    assert prompts(folder / form, "held_out", held_out=2) == ["t0", "t1"]


@FORMS
@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("train[:30%]", numbered("q", range(3))),
        ("train[2:4]", ["q2", "q3"]),
        ("train[-2:] + test", ["q8", "q9", "t0", "t1", "t2"]),
        ("all", [*numbered("q", range(10)), "t0", "t1", "t2"]),
    ],
)
def test_splits_are_written_as_datasets_writes_them(folder, form, part, expected):
    assert prompts(folder / form, "held_out", train_split="none", held_out_split=part) == expected
    kept = prompts(folder / form, "train", train_split=part, held_out=1)
    assert len(kept) == len(expected) - ("test" in part or part == "all")
    assert set(kept) <= set(expected)


@pytest.mark.parametrize("one_column", [True, False])
def test_conversations_are_read_where_every_column_is_a_list(tmp_path, one_column):
    user, assistant = ({"role": it, "content": it} for it in ("user", "assistant"))
    whole = {"messages": [user, assistant]}
    row = whole if one_column else {"prompt": [user], "completion": [assistant]}
    datasets.Dataset.from_list([row] * 3).to_parquet(tmp_path / "train.parquet")
    for example in load(DataConfig(f"hf:{tmp_path}", held_out=1), "held_out"):
        assert (example.messages, example.solution) == ((user,), "assistant")


def test_a_part_without_rows_is_called_so(folder):
    with pytest.raises(ValueError, match="holds no examples"):
        load(config(folder / "files", train_split="train[5:3]"), "train")


def test_rows_of_a_part_keep_their_places_in_the_split(folder):
    rows = load(config(folder / "files", train_split="train[5:7]"), "train")
    assert [e.id.rpartition("/")[2] for e in rows] == ["train:5", "train:6"]


def test_no_row_is_trained_on_and_held_out(folder):
    parts = {"train_split": "train[20%:]", "held_out_split": "train[:20%]"}
    assert prompts(folder / "files", "train", **parts) == numbered("q", range(2, 10))
    assert prompts(folder / "files", "held_out", **parts) == ["q0", "q1"]
    for split in ("train", "held_out"):
        with pytest.raises(
            ValueError,
            match=r"held_out_split='train\[:20%\]' shares a row with train_split='train\[1:\]'",
        ):
            load(config(folder / "files", **parts | {"train_split": "train[1:]"}), split)
    # "test" would be held out, were it not trained on: a part is cut instead.
    for trained in ("test", "train+test", "all"):
        train, held_out = (
            prompts(folder / "files", split, train_split=trained, held_out=1)
            for split in ("train", "held_out")
        )
        assert len(held_out) == 1 and not {*train} & {*held_out}


def test_one_saved_table_is_a_training_split(folder):
    train, held_out = (prompts(folder / "alone", s, held_out=2) for s in ("train", "held_out"))
    assert sorted([*train, *held_out]) == numbered("q", range(10)) and len(held_out) == 2


def test_a_table_that_is_only_evaluated_on_needs_no_training_split(folder):
    assert prompts(folder / "files", "held_out", train_split="absent") == ["t0", "t1", "t2"]


def test_a_path_may_start_at_home(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert prompts("~/files", "held_out") == ["t0", "t1", "t2"]
    assert load(config("~/files"), "train")[0].id == "~/files/train:0"


# Streams.


@pytest.fixture
def endless(monkeypatch):
    """A data set of the hub whose rows never end; the numbers of those that were made."""
    made = []

    def rows():
        for i in range(10**9):
            made.append(i)
            yield {"question": f"q{i}", "target": i}

    def load_dataset(path, name, *, streaming):
        assert (path, name, streaming) == ("some/set", "large", True)
        return datasets.IterableDatasetDict(train=datasets.IterableDataset.from_generator(rows))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return made


def test_a_stream_is_read_no_further_than_is_asked_for(endless):
    settings = {"streaming": True, "limit": 6, "held_out": 2}
    train = prompts("some/set:large", "train", **settings)
    held_out = prompts("some/set:large", "held_out", **settings)
    assert sorted([*train, *held_out]) == numbered("q", range(8))
    assert (len(train), len(held_out)) == (6, 2)
    assert max(endless) < 20


@FORMS
def test_folders_stream(folder, form):
    settings = {"streaming": True, "limit": 4, "held_out": 2}
    assert prompts(folder / form, "train", **settings) == numbered("q", range(4))
    assert prompts(folder / form, "held_out", **settings) == ["t0", "t1"]
    both = prompts(folder / form, "train", **settings | {"limit": 11, "train_split": "train+test"})
    assert len(both) == 11


# What is no text.


def test_pictures_are_left_out_and_not_decoded(tmp_path):
    picture = {"bytes": b"\x89 no picture", "path": None}
    kinds = {
        "prompt": datasets.Value("string"),
        "image": datasets.Image(),
        "more": [datasets.Image()],
    }
    columns = {"prompt": ["a", "b"], "image": [picture] * 2, "more": [[picture]] * 2}
    made = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
    made.save_to_disk(tmp_path / "pictures")
    with pytest.warns(UserWarning, match="not read, as no text: image, more"):
        (example,) = load(DataConfig(f"hf:{tmp_path / 'pictures'}", held_out=1), "train")
    assert example.messages[0]["content"] in ("a", "b")


# Refusals.


def refused(source, split="train", **settings):
    with pytest.raises(ValueError) as refusal:
        load(config(source, **settings), split)
    assert len(str(refusal.value).splitlines()) == 1
    return str(refusal.value)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("configs", {}, r"it needs a configuration: write hf:\S+:CONFIG, of main, socratic$"),
        ("configs:man", {}, r"no configuration 'man' \(did you mean 'main'\?\): write hf:"),
        ("files:main", {}, r"no configuration 'main': write hf:\S+:CONFIG, of default"),
        ("disk:main", {}, "what save_to_disk wrote has no configurations: write hf:"),
        ("file", {}, r"file' is no folder \(did you mean 'files'\?\): check the path"),
        ("files/test.parquet", {}, r"is a file, not a data set: write source=\S+test.parquet"),
        (
            "files",
            {"train_split": "trian[:5]"},
            r"train_split='trian\[:5\]' is no split of .* mean 'train'\?\): it has train, test",
        ),
        (
            "files",
            {"held_out_split": "train+dev"},
            r"held_out_split='train\+dev' is no split of \S+: it has train, test",
        ),
        (
            "files",
            {"train_split": "train[:x]"},
            r"train_split='train\[:x\]' is no part of .* as in",
        ),
        ("files", {"train_split": "train[:200%]"}, r"no part of \S+ \(Percent slice boundaries"),
        ("files", {"train_split": "train[:1%]"}, r"train\[:1%\] holds no examples"),
    ],
)
def test_what_a_folder_lacks_is_named(folder, name, settings, message):
    assert re.search(message, refused(folder / name, **settings))


def test_folders_without_readable_data_are_refused(tmp_path):
    assert re.search("no data is there .* or a folder with Parquet", refused(tmp_path))
    (tmp_path / "train.parquet").write_text("nonsense")
    message = refused(tmp_path)
    assert re.search(r"it can't be loaded \(.*Parquet.*\): datasets.load_dataset\(", message)


NOT_FOUND = datasets.exceptions.DatasetNotFoundError


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            NOT_FOUND("Dataset 'a/b' is a gated dataset on the Hub. You must be authenticated."),
            "it is gated: accept its terms on https://huggingface.co/datasets/a/b and log in",
        ),
        (
            NOT_FOUND("Dataset 'a/b' doesn't exist on the Hub or cannot be accessed."),
            "there is no such data set on the hub and no such folder: check the spelling",
        ),
        (
            ConnectionError("Couldn't reach 'a/b' on the Hub (ConnectError)\nand more"),
            r"not in the cache, and the hub was not reached \(Couldn't reach 'a/b' .*\): check the",
        ),
        (
            RuntimeError("Dataset scripts are no longer supported, but found b.py"),
            r"it is a script \(.* found b.py\): name a data set of plain files",
        ),
        (OSError("No space left"), r"it can't be loaded \(No space left\): datasets.load_dataset"),
    ],
)
def test_what_the_hub_answers_is_explained(monkeypatch, error, message):
    def load_dataset(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    assert re.search(f"^source='hf:a/b': .*{message}", refused("a/b"))
    if isinstance(error, ConnectionError):
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        assert re.search("not in the cache, and HF_HUB_OFFLINE is set: unset it", refused("a/b"))


def test_a_stream_that_breaks_off_says_where(monkeypatch):
    def rows():
        yield {"question": "q0", "target": 0}
        raise ConnectionError("the other side hung up")

    stream = datasets.IterableDatasetDict(train=datasets.IterableDataset.from_generator(rows))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: stream)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    message = refused("a/b", streaming=True, limit=4)
    assert re.search("^source='hf:a/b': split 'train' can't be read: .*hung up.*: check", message)


def test_the_cure_is_written_as_the_path_was(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert "write hf:~/configs:CONFIG, of main, socratic" in refused("~/configs")


def test_long_lists_of_configurations_are_cut():
    assert hugging_face.listing([*"abcdefghijklmno"]).endswith("k, l and 3 more")
