import pytest

from jopd.training.accelerators import published


@pytest.mark.parametrize(
    "kind, name",
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU7x", "tpu7x"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA A100 80GB PCIe", "A100 80GB PCIe"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA B200", "B200"),
    ],
)
def test_a_device_is_known_by_its_kind(kind, name):
    known = published(kind)
    assert known is not None and known.name == name


@pytest.mark.parametrize(
    "kind",
    [
        *("cpu", "TPU v4 lite", "TPU v9", "NVIDIA GH200 480GB", "Tesla V100", "A10"),
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
    ],
)
def test_of_others_nothing_is_invented(kind):
    assert published(kind) is None


def test_the_peak_in_words():
    known = published("NVIDIA H100 80GB HBM3")
    assert known is not None
    assert known.peak == "989 TFLOP/s a device (H100, bfloat16, published)"
