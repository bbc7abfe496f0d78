"""Writes small TensorFlow Lite files: operators with constant inputs, which is all that hyfuse reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import tflite
from numpy.typing import NDArray

Constants = Sequence[NDArray[np.generic]]


def write_tflite(path: Path, graphs: Mapping[str, Sequence[tuple[str, Constants]]]) -> None:
    """Write a file.

    Args:
        graphs: subgraph name to its operators, each a kind (``CONV_2D``) and its constant inputs. Every operator also gets
            one computed input, first, as in a real file.
    """
    builder = flatbuffers.Builder(1 << 16)
    kinds = sorted({kind for operators in graphs.values() for kind, _ in operators})
    buffers = [_buffer(builder, None)]
    subgraphs = []
    for name, operators in graphs.items():
        tensors = [_tensor(builder, [1], 0)]
        packed = []
        for kind, constants in operators:
            inputs = [0]
            for constant in constants:
                buffers.append(_buffer(builder, constant))
                inputs.append(len(tensors))
                kind_of_number = 0 if constant.dtype == np.float32 else 2
                tensors.append(_tensor(builder, list(constant.shape), len(buffers) - 1, kind_of_number))
            vector = _numbers(builder, inputs, tflite.OperatorStartInputsVector)
            tflite.OperatorStart(builder)
            tflite.OperatorAddOpcodeIndex(builder, kinds.index(kind))
            tflite.OperatorAddInputs(builder, vector)
            packed.append(tflite.OperatorEnd(builder))
        label = builder.CreateString(name)
        tensor_vector = _offsets(builder, tensors, tflite.SubGraphStartTensorsVector)
        operator_vector = _offsets(builder, packed, tflite.SubGraphStartOperatorsVector)
        tflite.SubGraphStart(builder)
        tflite.SubGraphAddName(builder, label)
        tflite.SubGraphAddTensors(builder, tensor_vector)
        tflite.SubGraphAddOperators(builder, operator_vector)
        subgraphs.append(tflite.SubGraphEnd(builder))
    codes = []
    for kind in kinds:
        tflite.OperatorCodeStart(builder)
        code = getattr(tflite.BuiltinOperator, kind)
        tflite.OperatorCodeAddDeprecatedBuiltinCode(builder, min(code, 127))
        tflite.OperatorCodeAddBuiltinCode(builder, code)
        codes.append(tflite.OperatorCodeEnd(builder))
    code_vector = _offsets(builder, codes, tflite.ModelStartOperatorCodesVector)
    subgraph_vector = _offsets(builder, subgraphs, tflite.ModelStartSubgraphsVector)
    buffer_vector = _offsets(builder, buffers, tflite.ModelStartBuffersVector)
    tflite.ModelStart(builder)
    tflite.ModelAddVersion(builder, 3)
    tflite.ModelAddOperatorCodes(builder, code_vector)
    tflite.ModelAddSubgraphs(builder, subgraph_vector)
    tflite.ModelAddBuffers(builder, buffer_vector)
    builder.Finish(tflite.ModelEnd(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))


def _buffer(builder: Any, constant: NDArray[np.generic] | None) -> int:
    data = None if constant is None else builder.CreateByteVector(np.ascontiguousarray(constant).tobytes())
    tflite.BufferStart(builder)
    if data is not None:
        tflite.BufferAddData(builder, data)
    return int(tflite.BufferEnd(builder))


def _tensor(builder: Any, shape: list[int], buffer: int, kind: int = 0) -> int:
    vector = _numbers(builder, shape, tflite.TensorStartShapeVector)
    tflite.TensorStart(builder)
    tflite.TensorAddShape(builder, vector)
    tflite.TensorAddType(builder, kind)
    tflite.TensorAddBuffer(builder, buffer)
    return int(tflite.TensorEnd(builder))


def _numbers(builder: Any, values: Sequence[int], start: Any) -> int:
    start(builder, len(values))
    for value in reversed(values):
        builder.PrependInt32(value)
    return int(builder.EndVector())


def _offsets(builder: Any, values: Sequence[int], start: Any) -> int:
    start(builder, len(values))
    for value in reversed(values):
        builder.PrependUOffsetTRelative(value)
    return int(builder.EndVector())
