"""Writes an image model that is not ours: float NCHW pixels in, five numbers out, no metadata.

Argument: the file to write.
"""

import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

random = np.random.default_rng(3)


def weights(name, *shape):
    scale = np.prod(shape[1:]) ** -0.5
    return numpy_helper.from_array((random.normal(size=shape) * scale).astype(np.float32), name)


graph = helper.make_graph(
    [
        helper.make_node("Conv", ["pixels", "w1"], ["a"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "w3"], ["y"], transB=1),
    ],
    "any",
    [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 3, 32, 32])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])],
    [weights("w1", 16, 3, 3, 3), weights("w2", 24, 16, 3, 3), weights("w3", 5, 24)],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
onnx.checker.check_model(model, full_check=True)
onnx.save(model, sys.argv[1])
