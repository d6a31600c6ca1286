"""Compiles every kernel for sm_80, sm_90 and sm_100, without a GPU, in shapes of ViT-B and ViT-L at 16 x 224 x 224.

`launch` hands each launch to this script in place of a device, so what is compiled is what would run: the same block sizes, warps,
types and divisibility. Prints one JSON list. A script of its own, because TRITON_INTERPRET must not be set in its process.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from trocar.kernels import launch

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
POINTERS = {
    torch.uint8: "*u8",
    torch.uint16: "*u16",
    torch.bool: "*i1",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
}
CAPABILITIES = (80, 90, 100) if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 3) else (80, 90)
CLIPS, TOKENS, VISIBLE = 8, 1568, 160
WIDTHS = {"base": (768, 384), "large": (1024, 512)}  # encoder, decoder
VALUES = 1536


def patch_embed(width: int, dtype: torch.dtype) -> None:
    from trocar.kernels.patch_embed import _patch_embed, _patch_embed_backward

    frames = torch.zeros(CLIPS, 16, 224, 224, 3, dtype=torch.uint8)
    visible = torch.zeros(CLIPS, VISIBLE, dtype=torch.int64)
    weight, bias, positions = torch.zeros(width, 3, 2, 16, 16), torch.zeros(width), torch.zeros(TOKENS, width)
    mean, std = [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]
    tokens = _patch_embed(frames, visible, weight, bias, positions, mean, std, dtype)
    _patch_embed_backward(tokens, frames, visible, weight, TOKENS, mean, std)


def decoder_tokens(width: int, dtype: torch.dtype) -> None:
    from trocar.kernels.decoder_tokens import _decoder_tokens, _mask_token_gradient

    projected, mask_token = torch.zeros(CLIPS, VISIBLE, width, dtype=dtype), torch.zeros(width)
    visible, masked = (torch.zeros(CLIPS, count, dtype=torch.int64) for count in (VISIBLE, TOKENS - VISIBLE))
    tokens = _decoder_tokens(projected, mask_token, torch.zeros(TOKENS, width), visible, masked)
    _mask_token_gradient(tokens, VISIBLE)


def pixel_loss(normalization: str, dtype: torch.dtype, weighted: bool) -> None:
    from trocar.kernels.pixel_loss import _pixel_loss, _scale

    frames = torch.zeros(CLIPS, 16, 224, 224, 3, dtype=torch.uint8)
    masked = torch.zeros(CLIPS, TOKENS - VISIBLE, dtype=torch.int64)
    prediction = torch.zeros(*masked.shape, VALUES, dtype=dtype)
    counted = masked == 0 if weighted else None
    _, _, gradient = _pixel_loss(prediction, frames, masked, counted, 2, 16, normalization, 1.0, True)
    _scale(gradient, torch.ones(()))


def ema(width: int, copy_dtype: torch.dtype) -> None:
    from trocar.kernels.ema import _ema

    shapes = [(3 * width, width), (width,), (4 * width, width)]
    targets, sources, copies = ([torch.zeros(shape) for shape in shapes] for _ in range(3))
    _ema(targets, sources, torch.tensor(0.5), [copy.to(copy_dtype) for copy in copies])


def feature_loss(width: int, distance: str) -> None:
    from trocar.kernels.feature_loss import _feature_loss

    rows, offsets = CLIPS * VISIBLE, torch.arange(CLIPS + 1) * VISIBLE
    prediction = torch.zeros(rows, width, dtype=torch.bfloat16)
    features, chosen = torch.zeros(CLIPS, TOKENS, width, dtype=torch.bfloat16), torch.zeros(rows, dtype=torch.int64)
    _feature_loss(prediction, features, chosen, offsets, distance, 1.0, 1e-5, True)


def masks() -> None:
    from trocar.kernels.mask_sampler import _running_cell_mask, _tube_mask

    draws = torch.arange(CLIPS)
    _tube_mask(draws, draws, -5, 8, 196, 20)
    _running_cell_mask(draws, draws, 2**40, 8, 14, 14, 2)


def rope3d(heads: int) -> None:
    from trocar.kernels.rope3d import _rope3d

    fused = torch.zeros(CLIPS, VISIBLE, 3, heads, 64, dtype=torch.bfloat16)
    queries, keys, _ = fused.unbind(2)
    turned = _rope3d(queries, keys, torch.zeros(CLIPS, VISIBLE, dtype=torch.int64), 8, 14, 14, False)
    _rope3d(*turned, torch.zeros(CLIPS, VISIBLE, dtype=torch.int64), 8, 14, 14, True)


def kmeans_assign(width: int, dtype: torch.dtype) -> None:
    from trocar.kernels.kmeans_assign import kmeans_assign

    rows, centroids = torch.zeros(1024, width, dtype=dtype), torch.zeros(1000, width, dtype=dtype)
    kmeans_assign(rows, centroids, torch.zeros(1000, width), torch.zeros(1000, dtype=torch.int64))


def yuv_clip(height: int, width: int, dtype: torch.dtype) -> None:
    from trocar.kernels.yuv_clip import _yuv_clip

    luma, chroma = (torch.zeros(16, rows, width, dtype=dtype) for rows in (height, height // 2))
    blue, red = chroma.view(16, height // 2, width // 2, 2).unbind(-1)
    _yuv_clip(luma, blue, red, [0, 0, height, height], 224, "bt709", False, 0, True)


def yuv_clips(side: int, resolution: int) -> None:
    from trocar.kernels.yuv_clips import _yuv_clips
    from trocar.kernels.yuv_geometry import column_taps, cut_numbers, region, scales

    kept, inside = region((8, 8, side, side), 0, 256, 448)
    integers, factors = cut_numbers(kept, inside, resolution, "bt709", False, 0, True)
    slots = torch.zeros(8, 16, resolution, resolution, 3, dtype=torch.uint8)
    taps = column_taps(scales(side, side, resolution))
    _yuv_clips(slots, torch.tensor([integers], dtype=torch.int32), torch.tensor([factors]), taps)


def row_sums(width: int, dtype: torch.dtype) -> None:
    from trocar.kernels.row_sums import sum_rows_by_index

    sum_rows_by_index(
        torch.zeros(CLIPS * VISIBLE, width, dtype=dtype), torch.zeros(CLIPS * VISIBLE, dtype=torch.int64), TOKENS
    )


CASES: dict[str, Callable[[], Any]] = {
    **{
        f"patch_embed {size} bfloat16": (lambda width=width: patch_embed(width, torch.bfloat16))
        for size, (width, _) in WIDTHS.items()
    },
    "patch_embed base float32": lambda: patch_embed(768, torch.float32),
    **{
        f"decoder_tokens {size} bfloat16": (lambda width=width: decoder_tokens(width, torch.bfloat16))
        for size, (_, width) in WIDTHS.items()
    },
    "pixel_loss channel bfloat16": lambda: pixel_loss("channel", torch.bfloat16, False),
    "pixel_loss patch float32, counted": lambda: pixel_loss("patch", torch.float32, True),
    "pixel_loss none bfloat16": lambda: pixel_loss("none", torch.bfloat16, False),
    "ema base bfloat16": lambda: ema(768, torch.bfloat16),
    "feature_loss base l1": lambda: feature_loss(768, "l1"),
    "feature_loss large smooth_l1": lambda: feature_loss(1024, "smooth_l1"),
    "masks": masks,
    "rope3d base bfloat16": lambda: rope3d(12),
    "rope3d large bfloat16": lambda: rope3d(16),
    "kmeans_assign base float16": lambda: kmeans_assign(768, torch.float16),
    "kmeans_assign large bfloat16": lambda: kmeans_assign(1024, torch.bfloat16),
    "kmeans_assign base float32": lambda: kmeans_assign(768, torch.float32),
    "yuv_clip 1080p": lambda: yuv_clip(1080, 1920, torch.uint8),
    "yuv_clip proxy": lambda: yuv_clip(256, 456, torch.uint8),
    "yuv_clips of proxies": lambda: yuv_clips(224, 224),
    "yuv_clips that shrink": lambda: yuv_clips(248, 96),
    "yuv_clip 1080p of 10 bits": lambda: yuv_clip(1080, 1920, torch.uint16),
    "row_sums base bfloat16": lambda: row_sums(768, torch.bfloat16),
}


def recorded(case: Callable[[], Any]) -> list[tuple[Any, tuple, dict]]:
    launches: list[tuple[Any, tuple, dict]] = []
    launch.interpret_on_cpu = True
    launch.record = lambda *call: launches.append(call)
    case()
    return launches


def compile_for(capability: int, kernel: Any, arguments: tuple, options: dict) -> dict[str, Any]:
    """Compiles as the launcher would: integers by size, ones as constants, multiples of 16 as such."""
    meta = {name: value for name, value in options.items() if name in kernel.arg_names}
    values = {**dict(zip(kernel.arg_names, arguments, strict=False)), **meta}
    assert list(values) == kernel.arg_names, (kernel.fn.__name__, values.keys())
    signature, constants, attributes = {}, {}, {}
    for place, (name, value) in enumerate(values.items()):
        if name in meta or value is None or (isinstance(value, int) and value == 1):
            signature[name], constants[(place,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
            if value.data_ptr() % 16 == 0:
                attributes[(place,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(place,)] = [["tt.divisibility", 16]]
    settings = {name: value for name, value in options.items() if name not in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": True, **settings}
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        command = [str(CUOBJDUMP), "--dump-resource-usage", cubin.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    assert found is not None, usage
    registers, stack, _, local = map(int, found.groups())
    ptx = compiled.asm["ptx"]
    return {
        "kernel": kernel.fn.__name__,
        "capability": capability,
        "registers": registers,
        "stack_bytes": stack,
        "local_bytes": local,
        "shared_bytes": compiled.metadata.shared,
        "matrix_instructions": len(re.findall(r"mma\.sync|wgmma\.mma_async|tcgen05\.mma", ptx)),
        "float_atomics": len(re.findall(r"(?:atom|red)\.[\w.]*f(?:16|32|64)", ptx)),
        "approximate": sorted({*re.findall(r"\b(?:div\.(?:full|approx)|(?:sqrt|rsqrt|rcp)\.approx)[\w.]*", ptx)}),
        "vector_loads": len(re.findall(r"ld\.global[^;\n]*\.v[24]|cp\.async[^;\n]*, (?:0x10|16)", ptx)),
    }


def main() -> None:
    wanted = sys.argv[1:]
    rows = []
    for name, case in CASES.items():
        if wanted and not any(word in name for word in wanted):
            continue
        for kernel, arguments, options in recorded(case):
            rows += [
                {"case": name, **compile_for(capability, kernel, arguments, options)} for capability in CAPABILITIES
            ]
    json.dump(rows, sys.stdout)


if __name__ == "__main__":
    main()
