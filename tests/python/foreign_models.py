"""Writes two valid ONNX models that are not DiffBulk's: one with the right input but without our
metadata, one with the shipped model's metadata whose input is something else.

Arguments: directory, shipped model.
"""

import sys
from pathlib import Path

import onnx
from onnx import TensorProto, helper

directory = Path(sys.argv[1])


def write(name, input_name, input_type, shape, metadata=()):
    nodes = [
        helper.make_node("Cast", [input_name], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x"], ["expression"], axes=[1, 2], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(input_name, input_type, shape)],
        [helper.make_tensor_value_info("expression", TensorProto.FLOAT, ["N", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model.metadata_props.extend(metadata)
    onnx.checker.check_model(model)
    onnx.save(model, directory / name)


write("no_metadata.onnx", "image", TensorProto.UINT8, ["N", 224, 224, 3])
shipped = onnx.load(sys.argv[2])
write("other_input.onnx", "pixels", TensorProto.FLOAT, ["N", 224, 224, 3], shipped.metadata_props)
