"""Constants of a TensorFlow Lite file, read without a TensorFlow Lite runtime.

A TFLite file is a FlatBuffer: subgraphs (with names), each a list of operators in execution order, each with input tensors
that are either computed or constant. This module gives the constant float32 inputs per operator, in that order, which is all
that is needed to rebuild a network elsewhere. The small PyPI package ``tflite`` brings the schema (generated accessors).

Nothing is executed, and nothing is trusted: a file that is not whole ends in one :class:`WeightsError`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import WeightsError

__all__ = ["TFLiteOperator", "read_tflite"]

_IDENTIFIER = b"TFL3"
_FLOAT32 = 0


@dataclass(frozen=True)
class TFLiteOperator:
    """One operator of a subgraph.

    Attributes:
        kind: name in the schema, such as ``CONV_2D``.
        constants: its constant float32 inputs, in the order of its inputs, each with the shape stored in the file.
    """

    kind: str
    constants: tuple[NDArray[np.float32], ...]


@cache
def _operator_names() -> dict[int, str]:
    import tflite

    members = vars(tflite.BuiltinOperator).items()
    return {code: name for name, code in members if isinstance(code, int)}


def read_tflite(path: Path) -> dict[str, list[TFLiteOperator]]:
    """Operators of every subgraph, by the subgraph's name, in execution order.

    Raises:
        WeightsError: the file cannot be opened, is not a TFLite file, or is damaged.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path} cannot be opened: {error}. Check the path and its permissions.") from error
    if content[4:8] != _IDENTIFIER:
        raise WeightsError(
            f"{path} is not a TensorFlow Lite file: bytes 4 to 8 are {content[4:8]!r}, expected {_IDENTIFIER!r}. It is damaged"
            f" or another file (a page of a web site, an LFS pointer). Delete it and get it again."
        )
    try:
        return _subgraphs(content)
    except (struct.error, ValueError, IndexError, TypeError, KeyError, AttributeError, OverflowError) as error:
        # The generated accessors check nothing; offsets that lead nowhere end in one of these.
        raise WeightsError(
            f"{path} is damaged or half-downloaded: it starts as a TensorFlow Lite file but cannot be read to its end"
            f" ({type(error).__name__}: {error}). Delete it and get it again."
        ) from error


def _subgraphs(content: bytes) -> dict[str, list[TFLiteOperator]]:
    import tflite

    model = tflite.Model.GetRootAs(content, 0)
    codes = [model.OperatorCodes(index).BuiltinCode() for index in range(model.OperatorCodesLength())]
    kinds = [_operator_names().get(code, f"operator {code}") for code in codes]
    found: dict[str, list[TFLiteOperator]] = {}
    for index in range(model.SubgraphsLength()):
        graph = model.Subgraphs(index)
        operators = []
        for position in range(graph.OperatorsLength()):
            operator = graph.Operators(position)
            inputs = [operator.Inputs(slot) for slot in range(operator.InputsLength())]
            constants = [_constant(model, graph, tensor) for tensor in inputs]
            operators.append(
                TFLiteOperator(
                    kind=kinds[operator.OpcodeIndex()],
                    constants=tuple(constant for constant in constants if constant is not None),
                )
            )
        found[(graph.Name() or b"").decode()] = operators
    return found


def _constant(model: object, graph: object, index: int) -> NDArray[np.float32] | None:
    """The values of a tensor if they are stored in the file as float32, else None."""
    if index < 0:  # an optional input that is not there
        return None
    tensor = graph.Tensors(index)  # type: ignore[attr-defined]
    if tensor.Type() != _FLOAT32:
        return None
    buffer = model.Buffers(tensor.Buffer())  # type: ignore[attr-defined]
    if not buffer.DataLength():
        return None
    shape = [tensor.Shape(axis) for axis in range(tensor.ShapeLength())]
    return np.frombuffer(buffer.DataAsNumpy().tobytes(), dtype="<f4").reshape(shape)
