"""FLOPs of a compiled program on one device: its matrix products and convolutions, loops multiplied.

Elementwise work is not counted, as in a model's FLOPs. On TPU a matrix product is a `convolution` inside a
fusion, its batch as a spatial dimension whose padding and dilation leave only the diagonal; the count of
existing pairs (`contractions`) gives the product's own FLOPs back. On GPU they may be calls of cuBLAS and cuDNN;
cuDNN's gradients keep the window and labels of the convolution they belong to, and cost what it costs. (Only the
CPU's and the TPU's programs were compared with other counts.)
"""

from __future__ import annotations

import re

from ediffi_jax.planning.contractions import conv_flops, dot_flops
from ediffi_jax.planning.hlo import Computation, Instruction, Shape, parse
from ediffi_jax.planning.hlo_walk import executed


def hlo_flops(text: str) -> int:
    """FLOPs that one device executes in one run.

    Args:
        text: `compiled.as_text()`.

    Raises:
        PlanError: a product stands in a loop whose number of turns depends on data.
    """
    return sum(int(one.weight) * one.count for one in executed(parse(text), flops_of))


def flops_of(computation: Computation, instruction: Instruction) -> int:
    """FLOPs of one instruction; 0 if it is neither product nor convolution."""
    if instruction.opcode == "dot":
        left = computation.operand_shapes(instruction)[0][0]
        return dot_flops(instruction.shapes[0].dims, sizes(left, instruction.braces("lhs_contracting_dims")))
    if instruction.opcode == "convolution":
        left, right = (shapes[0] for shapes in computation.operand_shapes(instruction)[:2])
        return convolution(instruction, left, right, instruction.shapes[0])
    return library_call(computation, instruction) if instruction.opcode == "custom-call" else 0


def library_call(computation: Computation, instruction: Instruction) -> int:
    """FLOPs of a call of cuBLAS or cuDNN; 0 for any other."""
    target = instruction.attribute("custom_call_target") or ""
    result = instruction.shapes[0] if instruction.shapes else None
    if target.startswith("__cublas$"):
        left = computation.operand_shapes(instruction)[0][0]
        listed = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.attributes)
        return dot_flops(result.dims, sizes(left, listed[1].replace('"', ""))) if listed else 0
    if not target.startswith("__cudnn$conv"):
        return 0
    left, right = (shapes[0] for shapes in computation.operand_shapes(instruction)[:2])
    if target.endswith("BackwardInput"):
        return convolution(instruction, result, right, left)
    if target.endswith("BackwardFilter"):
        return convolution(instruction, left, result, right)
    return convolution(instruction, left, right, result)


def sizes(shape: Shape, numbers: str | None) -> list[int]:
    """The sizes of dimensions given as "0,1"."""
    return [shape.dims[int(number)] for number in (numbers or "").split(",") if number]


def convolution(instruction: Instruction, left: Shape, right: Shape, out: Shape) -> int:
    """FLOPs of a convolution of input `left` and weights `right`, from `dim_labels`, `window` and the groups."""
    labels = re.match(r"([\w?]+)_([\w?]+)->([\w?]+)", instruction.attribute("dim_labels") or "")
    of_left, of_right, of_result = (dict(zip(labels[i], range(len(labels[i])), strict=True)) for i in (1, 2, 3))
    result = out.dims
    spatial = sorted(label for label in of_left if label.isdigit())
    window = parse_window(instruction.braces("window") or "", len(spatial))
    windows = [
        (left.dims[of_left[label]], right.dims[of_right[label]], result[of_result[label]], *window[int(label)])
        for label in spatial
    ]
    return conv_flops(
        batch=left.dims[of_left["b"]],
        features_in=left.dims[of_left["f"]],
        features_out=result[of_result["f"]],
        windows=windows,
        groups=int(instruction.attribute("feature_group_count") or 1),
        batch_groups=int(instruction.attribute("batch_group_count") or 1),
    )


def parse_window(text: str, dims: int) -> list[tuple[int, int, int, int]]:
    """Stride, padding before, input dilation and kernel dilation of each spatial dimension."""
    fields = dict(field.split("=") for field in text.split() if "=" in field)

    def each(name: str, default: int) -> list[int]:
        return [int(part.split("_")[0]) for part in fields[name].split("x")] if name in fields else [default] * dims

    return list(zip(each("stride", 1), each("pad", 0), each("lhs_dilate", 1), each("rhs_dilate", 1), strict=True))
