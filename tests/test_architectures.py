"""The tables, against figures published elsewhere."""

import pytest

from tf_alexnet.architectures import ARCHITECTURES, BVLC_ALEXNET, CAFFENET, TORCHVISION
from tf_alexnet.errors import AlexNetError, InputError, LayerError


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("bvlc_alexnet", 60_965_224), ("caffenet", 60_965_224), ("torchvision", 61_100_840)],
)
def test_parameter_counts(name, parameters):
    assert ARCHITECTURES[name].parameters == parameters


def test_output_shapes_of_bvlc_alexnet():
    shapes = {row.name: row.output_shape for row in BVLC_ALEXNET.rows()}
    assert shapes == {
        "data": (227, 227, 3),
        "conv1": (55, 55, 96),
        "norm1": (55, 55, 96),
        "pool1": (27, 27, 96),
        "conv2": (27, 27, 256),
        "norm2": (27, 27, 256),
        "pool2": (13, 13, 256),
        "conv3": (13, 13, 384),
        "conv4": (13, 13, 384),
        "conv5": (13, 13, 256),
        "pool5": (6, 6, 256),
        "fc6": (4096,),
        "fc7": (4096,),
        "fc8": (1000,),
        "prob": (1000,),
    }


def test_parameter_shapes_are_caffes():
    caffe = {
        "conv1": (96, 3, 11, 11),
        "conv2": (256, 48, 5, 5),
        "conv3": (384, 256, 3, 3),
        "conv4": (384, 192, 3, 3),
        "conv5": (256, 192, 3, 3),
        "fc6": (4096, 9216),
        "fc7": (4096, 4096),
        "fc8": (1000, 4096),
    }
    for table in (BVLC_ALEXNET, CAFFENET):
        for name, (kernel, bias) in table.parameter_shapes().items():
            order = (3, 2, 0, 1) if len(kernel) == 4 else (1, 0)
            assert tuple(kernel[i] for i in order) == caffe[name]
            assert bias == (caffe[name][0],)


def test_orders_of_norm_and_pool():
    assert BVLC_ALEXNET.blobs[1:7] == ("conv1", "norm1", "pool1", "conv2", "norm2", "pool2")
    assert CAFFENET.blobs[1:7] == ("conv1", "pool1", "norm1", "conv2", "pool2", "norm2")


def test_receptive_fields_and_multiply_adds():
    rows = {row.name: row for row in BVLC_ALEXNET.rows()}
    fields = [rows[f"conv{i}"].receptive_field for i in range(1, 6)]
    assert fields == [11, 51, 99, 131, 163]
    assert rows["pool5"].receptive_field == 195
    assert rows["conv1"].multiply_adds == 55 * 55 * 96 * 11 * 11 * 3
    assert sum(row.multiply_adds for row in rows.values()) == 724_406_816


def test_caffes_pooling_rounds_up_and_torchs_down():
    assert {r.name: r.output_shape for r in BVLC_ALEXNET.rows(231)}["pool1"] == (28, 28, 96)
    assert {r.name: r.output_shape for r in TORCHVISION.rows(228)}["pool1"] == (27, 27, 64)


def test_another_number_of_classes():
    table = BVLC_ALEXNET.with_classes(365)
    assert table.parameter_shapes()["fc8"] == ((4096, 365), (365,))
    assert BVLC_ALEXNET.classes == 1000


def test_blob_names():
    assert BVLC_ALEXNET.check_blob("fc7_preact") == "fc7_preact"
    for name in ("fc8_preact", "relu7", "drop6", "FC7"):
        with pytest.raises(LayerError, match=r"Use one of: data, conv1, .*fc7_preact\."):
            BVLC_ALEXNET.check_blob(name)


def test_an_input_too_small_is_refused():
    with pytest.raises(InputError, match="it is too small for layer pool5"):
        list(BVLC_ALEXNET.rows(30))


def test_errors_are_one_line_whatever_the_name():
    text = str(AlexNetError("a\nb\x1b[31m.npy", "found\r", "Do."))
    assert text == r"a\nb\x1b[31m.npy: found\r. Do."
