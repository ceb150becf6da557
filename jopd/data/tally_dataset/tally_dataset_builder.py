"""TFDS builder `tally`: fixed-size splits of the built-in task, made on the spot, no download and
no TensorFlow.

builder = tfds.builder("tally", data_dir=FOLDER, file_format="array_record")
builder.download_and_prepare()
builder.as_data_source("train")[0]     # {"prompt": b"Mia has ...", "solution": b"step 1: ...", ...}
"""

import tensorflow_datasets as tfds

from jopd.data.task import TallyTask

SIZES = {"train": 2000, "held_out": 500}


class Builder(tfds.core.GeneratorBasedBuilder):
    """`jopd.data.task.TallyTask` with its default settings; text columns `prompt`, `solution` and
    `answer`.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}

    def _info(self) -> tfds.core.DatasetInfo:
        columns = {name: tfds.features.Text() for name in ("prompt", "solution", "answer")}
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(columns), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing to download
        return {split: self._generate_examples(split) for split in SIZES}

    def _generate_examples(self, split):
        for index, example in enumerate(TallyTask().examples(split, SIZES[split])):
            yield (
                index,
                {
                    "prompt": example.messages[0]["content"],
                    "solution": example.solution,
                    "answer": example.answer,
                },
            )
