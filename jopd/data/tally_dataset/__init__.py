"""The built-in task as a TFDS data set. Importing this package registers it, so
`tfds.builder("tally")` finds it.
"""

from jopd.data.tally_dataset.tally_dataset_builder import Builder

__all__ = ["Builder"]
