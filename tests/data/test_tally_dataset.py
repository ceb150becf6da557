"""The task through TFDS: prepared and read back without TensorFlow."""

import subprocess
import sys

import pytest

from jopd.data.task import TallyTask

tfds = pytest.importorskip("tensorflow_datasets")


def test_prepared_data_set_reads_back(tmp_path):
    import jopd.data.tally_dataset  # noqa: F401  (registers the builder)

    builder = tfds.builder("tally", data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    for split, size in (("train", 2000), ("held_out", 500)):
        source = builder.as_data_source(split)
        assert len(source) == size
        for index in (0, 1, size - 1):
            example = TallyTask().example(index, split)
            row = {name: value.decode() for name, value in source[index].items()}
            assert row == {
                "prompt": example.messages[0]["content"],
                "solution": example.solution,
                "answer": example.answer,
            }


def test_the_builder_does_not_import_tensorflow():
    code = (
        "import sys, jopd.data.tally_dataset as t; t.Builder; assert 'tensorflow' not in "
        "sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
