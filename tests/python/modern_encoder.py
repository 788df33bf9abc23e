"""Writes a small image encoder as exporters write them today: operator set given, reductions and
splits in their newer forms, a transposed layout in the middle, an attention-like product.

Arguments: operator set, ONNX file.
"""

import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

opset, path = int(sys.argv[1]), sys.argv[2]
random = np.random.default_rng(3)


def constant(name, value):
    return numpy_helper.from_array(np.asarray(value), name)


weights = [
    constant("kernel", random.normal(0, 0.2, (12, 3, 8, 8)).astype(np.float32)),
    constant("bias", random.normal(0, 0.1, 12).astype(np.float32)),
    constant("scale", random.uniform(0.5, 1.5, 12).astype(np.float32)),
    constant("shift", random.normal(0, 0.1, 12).astype(np.float32)),
    constant("spatial", np.array([1], np.int64)),
    constant("tokens", np.array([0, 12, -1], np.int64)),
]
node = helper.make_node
nodes = [
    # Patches, as a vision transformer cuts them.
    node("Conv", ["pixels", "kernel", "bias"], ["patches"], kernel_shape=[8, 8], strides=[8, 8]),
    node("Reshape", ["patches", "tokens"], ["flat"]),
    node("Transpose", ["flat"], ["x"], perm=[0, 2, 1]),
    node("LayerNormalization", ["x", "scale", "shift"], ["normal"], axis=-1, epsilon=1e-5),
    # Since 18 the number of parts is an attribute.
    node("Split", ["normal"], ["q", "k", "v"], axis=2, num_outputs=3),
    node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
    node("MatMul", ["q", "kt"], ["scores"]),
    node("Softmax", ["scores"], ["shares"], axis=-1),
    node("MatMul", ["shares", "v"], ["mixed"]),
    node("Gelu", ["mixed"], ["active"]) if opset >= 20 else node("Relu", ["mixed"], ["active"]),
    # Since 18 the axes of these are inputs.
    node("ReduceMean", ["active", "spatial"], ["mean"], keepdims=0),
    node("ReduceMax", ["normal", "spatial"], ["peak"], keepdims=0),
    node("ReduceL2", ["normal", "spatial"], ["norm"], keepdims=0),
    node("Concat", ["mean", "peak", "norm"], ["features"], axis=1),
]
graph = helper.make_graph(
    nodes,
    "encoder",
    [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 3, 64, 64])],
    [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 28])],
    weights,
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
onnx.checker.check_model(model, full_check=True)
onnx.save(model, path)
