"""Residual streams in the basis of one of the layers that read them, which has nothing left to do then."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.bake.passes.graph import NEGLIGIBLE, Graph, attributes, is_convolution, is_pointwise, largest
from runner.bake.passes.prelu import STEEPEST, from_bent

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import NodeProto

# How much larger a matrix may make some vectors than others: its inverse makes rounding larger by as much, and of the
# seven digits of single precision three are left then, where five are what the proof asks for.
WORST_CONDITION = 1e4
# NumPy multiplies matrices of these itself. BLAS rounds in another order on another kind of processor, and the same
# files would not be baked to the same bytes there.
_PRECISE = np.longdouble


@dataclass(frozen=True, slots=True)
class _Stream:
    """Pointwise convolutions that are added up one after the other (`writers`), and those that read the sums."""

    writers: list[NodeProto]
    readers: list[NodeProto]


@dataclass(frozen=True, slots=True)
class _Basis:
    """A reader of a stream, the PRelu after it, and what the two of them see: `matrix` x + `shift`, invertible."""

    reader: NodeProto
    bend: NodeProto
    matrix: NDArray[np.longdouble]
    shift: NDArray[np.longdouble]
    condition: float


def turn_streams(graph: Graph) -> None:
    """Keep each residual stream as one of its readers sees it, and spare that reader.

    Inverted residuals (https://arxiv.org/abs/1801.04381) without an activation where they end: x grows by P_k h_k in
    every block, and all that reads it are matrices E_k. With y = E_j x for one j, blocks write E_j P_k, the others
    read E_k E_j⁻¹, and block j reads y itself. Of ArcFace's MobileFaceNet, whose blocks do not widen, that spares one
    of 5, 7 and 3 readers: 6% of the recogniser's multiplications.
    """
    for stream in list(_streams(graph)):
        readers = graph.readers()
        bases = [basis for reader in stream.readers if (basis := _basis(graph, reader, readers)) is not None]
        best = min(bases, key=lambda basis: basis.condition, default=None)
        if best is not None and best.condition <= WORST_CONDITION:
            _turn(graph, stream, best)


def _streams(graph: Graph) -> Iterator[_Stream]:
    makers, readers = graph.makers(), graph.readers()
    for node in graph.nodes:
        if not is_pointwise(graph, node):
            continue
        stream, tensor = _Stream([node], []), node.output[0]
        while tensor not in graph.outputs:
            sums = [reader for reader in readers[tensor] if reader.op_type == "Add"]
            stream.readers.extend(reader for reader in readers[tensor] if reader.op_type != "Add")
            if len(sums) != 1:
                break
            added = next((name for name in sums[0].input if name != tensor), tensor)
            writer = makers.get(added)
            if writer is None or not is_pointwise(graph, writer) or graph.only_reader(added, readers) is None:
                break
            stream.writers.append(writer)
            tensor = sums[0].output[0]
        ended = bool(readers[tensor]) and all(reader.op_type != "Add" for reader in readers[tensor])
        if ended and tensor not in graph.outputs and all(is_pointwise(graph, one) for one in stream.readers):
            yield stream


def _basis(graph: Graph, reader: NodeProto, readers: dict[str, list[NodeProto]]) -> _Basis | None:
    """Return the basis in which `reader` and the factor of the PRelu after it are nothing, if there is one."""
    weights, bias = (graph.constants[name] for name in reader.input[1:])
    matrix = weights[:, :, 0, 0].astype(np.float64)
    bend = graph.only_reader(reader.output[0], readers)
    slopes = graph.constants.get(bend.input[1]) if bend is not None and bend.op_type == "PRelu" else None
    square = matrix.shape[0] == matrix.shape[1]
    if bend is None or slopes is None or not square or slopes.size != len(matrix) or slopes.max() > STEEPEST:
        return None
    empty = largest(matrix) <= NEGLIGIBLE * np.abs(matrix).max()
    if np.any(empty & ~_unread(graph, graph.only_reader(bend.output[0], readers), len(matrix))):
        return None
    matrix = _filled(matrix, empty)
    condition = float(np.linalg.cond(matrix / np.linalg.norm(matrix, axis=1, keepdims=True)))
    factors = 1 - slopes.ravel().astype(_PRECISE)
    return _Basis(reader, bend, factors[:, None] * matrix, factors * bias, condition)


def _filled(matrix: NDArray[np.float64], empty: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the matrix with other rows for those that read nothing, and that nothing reads: what no other row sees."""
    filled = np.where(empty[:, None], 0.0, matrix)
    for row in np.flatnonzero(empty):
        others = np.delete(filled, row, axis=0)
        unseen = np.eye(len(matrix)) - np.linalg.pinv(others) @ others
        # Rounded, because which row it is does not matter, but that it is the same one each time.
        filled[row] = np.round(unseen[np.argmax(np.diag(unseen))], 6)
    return filled


def _unread(graph: Graph, node: NodeProto | None, channels: int) -> NDArray[np.bool_]:
    """Return which channels a depthwise convolution does not read; none, if the node is none."""
    if node is None or not is_convolution(graph, node) or attributes(node).get("group", 1) != channels:
        return np.zeros(channels, np.bool_)
    read = largest(graph.constants[node.input[1]])
    return np.asarray(read <= NEGLIGIBLE * read.max())


def _turn(graph: Graph, stream: _Stream, basis: _Basis) -> None:
    inverse = _inverse(basis.matrix)
    for place, writer in enumerate(stream.writers):
        weights, bias = _pointwise(graph, writer)
        shift = basis.shift if place == 0 else 0.0
        _set(graph, writer, basis.matrix @ weights, basis.matrix @ bias + shift)
    for reader in stream.readers:
        if reader is not basis.reader:
            weights, bias = _pointwise(graph, reader)
            turned = weights @ inverse
            _set(graph, reader, turned, bias - turned @ basis.shift)
    slopes = graph.constants[basis.bend.input[1]]
    bent = from_bent(graph, basis.reader.input[0], slopes, basis.bend.output[0])
    graph.replace({id(basis.reader): [], id(basis.bend): bent})


def _inverse(matrix: NDArray[np.longdouble]) -> NDArray[np.longdouble]:
    """Return the inverse: LAPACK's, and one step of Newton's method (Schulz 1933) from there."""
    near = np.linalg.inv(matrix.astype(np.float64)).astype(_PRECISE)
    return near @ (2 * np.eye(len(matrix), dtype=_PRECISE) - matrix @ near)


def _pointwise(graph: Graph, node: NodeProto) -> tuple[NDArray[np.longdouble], NDArray[np.longdouble]]:
    weights, bias = (graph.constants[name].astype(_PRECISE) for name in node.input[1:])
    return weights[:, :, 0, 0], bias


def _set(graph: Graph, node: NodeProto, matrix: NDArray[Any], bias: NDArray[Any]) -> None:
    node.input[1] = graph.constant(matrix[:, :, None, None].astype(np.float32))
    node.input[2] = graph.constant(bias.astype(np.float32))
