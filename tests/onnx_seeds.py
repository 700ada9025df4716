"""ONNX files for the tests, written with the onnx package."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from weight_seeds import TORCH_KEYS

from tf_alexnet.architectures import LRN, Conv, Dense, MaxPool


def export(table, arrays, names, form="raw", dtype=np.float32, matmul=False, last=False):
    """A ModelProto of `table` with the weights of `arrays`; `names` names kernel and bias."""
    nodes, tensors, blob = [], [], "data_0"

    def add(kind, inputs, output, **attributes):
        nonlocal blob
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        blob = output

    for layer in table.layers:
        if isinstance(layer, LRN):
            add(
                *("LRN", [blob], f"{layer.name}_1"),
                **{"size": layer.local_size, "alpha": layer.alpha, "beta": layer.beta, "bias": 1.0},
            )
        elif isinstance(layer, MaxPool):
            add("MaxPool", [blob], f"{layer.name}_1", kernel_shape=[3, 3], strides=[2, 2])
        elif isinstance(layer, Conv | Dense):
            if layer.name == "fc6" and not last:
                add("Reshape", [blob, "shape"], "flat")
            elif layer.name == "fc6":
                add("Transpose", [blob], "channels_last", perm=[0, 2, 3, 1])
                add("Flatten", [blob], "flat")
            kernel, bias = names(layer.name)
            pair = arrays[layer.name]
            dense = isinstance(layer, Dense)
            for name, array in ((kernel, pair[0]), (bias, pair[1])):
                array = array.T if dense and matmul and name == kernel else array
                tensors.append(tensor(name, np.ascontiguousarray(array, dtype), form))
            if dense and matmul:
                add("MatMul", [blob, kernel], f"{layer.name}_product")
                add("Add", [blob, bias], f"{layer.name}_1")
            elif dense:
                add("Gemm", [blob, kernel, bias], f"{layer.name}_1", transB=1)
            else:
                add(
                    *("Conv", [blob, kernel, bias], f"{layer.name}_1"),
                    **{"kernel_shape": [layer.kernel] * 2, "strides": [layer.stride] * 2},
                    **{"pads": [layer.pad] * 4, "group": layer.groups},
                )
            if getattr(layer, "relu", True):
                add("Relu", [blob], f"{layer.name}_2")
    tensors.append(numpy_helper.from_array(np.array([1, -1], np.int64), "shape"))
    value = helper.make_tensor_value_info("data_0", TensorProto.FLOAT, [1, 3, 224, 224])
    graph = helper.make_graph(nodes, table.name, [value], [], tensors)
    return helper.make_model(graph)


def tensor(name, array, form):
    if form == "raw":
        return numpy_helper.from_array(array, name)
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor(name, kind, array.shape, array.reshape(-1).tolist())


def zoo(name):
    return f"{name}_w_0", f"{name}_b_0"


def torch(name):
    return f"{TORCH_KEYS[name]}.weight", f"{TORCH_KEYS[name]}.bias"
