"""Plants one fault at a time in a kernel's source and reports whether its tests notice.

Each fault runs in a forked process whose `trocar.kernels` is a copy of the folder with that fault in it. Prints one JSON object,
fault -> exit status: 0 the fault went unnoticed, 1 a test failed, below 0 it crashed the interpreter (a read or write far astray).
Usage: python tests/mutations.py KERNEL
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

# (what stands in the source, exactly once, and what takes its place)
FAULTS: dict[str, list[tuple[str, str]]] = {
    "patch_embed": [
        (
            "pixels = load_centred(frames, place, valid[:, None] & (value < K)[None, :]",
            "pixels = load_centred(frames, place, valid[:, None] & (value < K - 1)[None, :]",
        ),
        (
            "return (line // P) * frame_stride + (line % P) * line_stride",
            "return (line // P) * frame_stride + (line // P) * line_stride",
        ),
        ("(cell // columns).to(tl.int64) * P * line_stride", "(cell // columns).to(tl.int64) * P * line_stride + 3"),
        (
            "step, cell = token // cells, token % cells\n    start",
            "step, cell = token // columns, token % cells\n    start",
        ),
        ("mask=inside, other=128) ^ 128)", "mask=inside, other=128) ^ 127)"),
        (
            'total += tl.dot(left, right, input_precision="ieee") * (1 / 255)',
            'total += tl.dot(left, right, input_precision="ieee") * (1 / 256)',
        ),
        ("total *= 1 / 255", "total *= 1 / 256"),
        (
            "total = add_scaled_product(total, pixels, weights)",
            "total = add_scaled_product(total * 0, pixels, weights)",
        ),
        ("correction = tl.sum(rounded.to(tl.float32)", "correction = tl.sum(master.to(tl.float32)"),
        (
            "total = add_scaled_product(total, tl.trans(upstream), pixels)",
            "total = add_scaled_product(total * 0, tl.trans(upstream), pixels)",
        ),
        ("result = tl.div_rn(total - shift *", "result = tl.div_rn(total + shift *"),
        ("for split in range(splits):", "for split in range(1):"),
        ("return [value - 128 / 255 for value in mean]", "return [value - 127 / 255 for value in mean]"),
        (
            "start = (row // per_clip).to(tl.int64) * clip_stride",
            "start = (row // per_clip) * (clip_stride.to(tl.int32))",
        ),
    ],
    "pixel_loss": [
        (
            "variance = tl.div_rn(tl.sum(centred * centred, axis=0), count - 1.0)",
            "variance = tl.div_rn(tl.sum(centred * centred, axis=0), count * 1.0)",
        ),
        ("tl.div_rn(1.0, tl.sqrt_rn(variance) + 255e-6)", "tl.div_rn(1.0, tl.sqrt_rn(variance + 255e-6))"),
        ("target = tl.div_rn(pixels, 255.0)", "target = tl.div_rn(pixels, 256.0)"),
        (
            "target += _standardize(pixels, inside & (channel == 2), VALUES // 3)",
            "target += _standardize(pixels, inside & (channel == 1), VALUES // 3)",
        ),
        ("difference = tl.where(inside, difference, 0.0)", "difference = tl.where(inside, difference, 1.0)"),
        ("slope = difference * (2 * weight * gradient_scale)", "slope = difference * (weight * gradient_scale)"),
        ("centred = tl.where(chosen, pixels - mean, 0.0)", "centred = pixels - mean"),
        ("place = row.to(tl.int64) * VALUES + value", "place = row * VALUES + value"),
        ("for first in range(0, per_clip, BLOCK):", "for first in range(0, tl.minimum(per_clip, BLOCK), BLOCK):"),
        ("directly(_scale, gradient, upstream, changed=(gradient,))", "pass"),
        (
            "loss_scale == 1 else loss * loss_scale), clip_loss, gradient",
            "loss_scale == 1 else loss), clip_loss, gradient",
        ),
    ],
    "decoder_tokens": [
        (
            "hidden = row < num_visible, (row >= num_visible) & (row < rows)",
            "hidden = row <= num_visible, (row > num_visible) & (row < rows)",
        ),
        ("masked + clip * num_masked + row - num_visible", "masked + clip * num_masked + row - num_visible + 1"),
        ("value = tl.where(seen[:, None], value, filler[None, :])", "value += filler[None, :]"),
        ("place = (clip * rows + row)[:, None] * width", "place = (clip * num_visible + row)[:, None] * width"),
        ("value += tl.load(positions + place", "value = tl.load(positions + place"),
        ("return sum_rows(gradient[:, num_visible:])", "return sum_rows(gradient)"),
        (
            "place = token[:, None] * width + column[None, :]",
            "place = token.to(tl.int32)[:, None] * width + column[None, :]",
        ),
        ("inside = (column < width)[None, :]", "inside = (column < COLUMNS)[None, :]"),
    ],
    "row_sums": [
        ("(row % rows_per_clip).to(tl.int64) * width", "(row % rows_per_clip).to(tl.int64) * rows_per_clip"),
        ("first = split * rows_per_split", "first = split * rows_per_split + 1"),
        ("inside = (row < num_rows)[:, None] & (column < width)[None, :]", "inside = (column < width)[None, :]"),
        (
            "tl.store(totals + split.to(tl.int64) * width + column, tl.sum(total, axis=0), mask=column < width)",
            "tl.store(totals + split.to(tl.int64) * width + column, tl.max(total, axis=0), mask=column < width)",
        ),
        ("for first in range(start, end, ROWS):", "for first in range(start, end - 1, ROWS):"),
        ("inside = (position < end)[:, None] & (column < width)[None, :]", "inside = (column < width)[None, :]"),
        ("tl.load(counts + place) + (end - start)", "end - start"),
        ("        result += tl.load(target, mask=column < width, other=0.0)\n", ""),
        (
            "place = (row // rows_per_clip).to(tl.int64) * clip_stride",
            "place = (row // rows_per_clip) * clip_stride.to(tl.int32)",
        ),
    ],
    "feature_loss": [
        ("tl.div_rn(tl.sum(feature, axis=0), values)", "tl.div_rn(tl.sum(feature, axis=0), BLOCK * 1.0)"),
        (
            "variance = tl.div_rn(tl.sum(centred * centred, axis=0), values)",
            "variance = tl.div_rn(tl.sum(centred * centred, axis=0), values - 1)",
        ),
        ("difference = tl.where(inside, difference, 0.0)", "difference = tl.where(inside, difference, 0.5)"),
        ("0.5 * size * size, size - 0.5)", "0.5 * size * size, size)"),
        ("slope = tl.where(valid, slope * (weight * gradient_scale)", "slope = tl.where(valid, slope * weight"),
        ("loss, slope = size * size, 2.0 * difference", "loss, slope = size * size, difference"),
        ("tl.store(gradient + place, tl.where(counted, slope, 0.0)", "tl.store(gradient + place, slope"),
        (
            "end = tl.load(offsets + clip), tl.load(offsets + clip + 1)",
            "end = tl.load(offsets + clip), tl.load(offsets + clip + 1) - 1",
        ),
        ("* num_tokens + token) * width + column", "* num_tokens + token).to(tl.int32) * width + column"),
        ("clip = tl.sum((ends <= row)", "clip = tl.sum((ends < row)"),
        ("mask=number < num_clips, other=0x7FFFFFFF)", "mask=number < num_clips, other=0)"),
        ("weight = tl.div_rn(1.0, (end - begin)", "weight = tl.div_rn(1.0, (end)"),
    ],
    "ema": [
        ("weight = 1.0 - tl.load(momentum)", "weight = tl.load(momentum)"),
        ("        inside = place < size", "        inside = place <= size"),
        ("if start + CHUNK <= size:", "if start <= size:"),
        (
            "new = tl.where(weight == 0.0, old, new)\n            tl.store(target + place, new.to(TARGET))",
            "tl.store(target + place, new.to(TARGET))",
        ),
        (
            "                tl.store(copy + place, new.to(COPY), mask=inside)",
            "                tl.store(copy + place, old.to(COPY), mask=inside)",
        ),
        ("range(0, size, CHUNK)]", "range(0, size - CHUNK + 1, CHUNK)]"),
        ('"HAS_COPY": bool(copies)', '"HAS_COPY": False'),
        (" and found.addresses == addresses:", ":"),
        ("weakref.ref(part, lambda _: _sets.pop(key, None))", "weakref.ref(part)"),
        ("    note_changed((*targets, *copies))\n", ""),
    ],
    "mask_sampler": [
        ("tl.where(cell < cells, (keys << 31) + cell,", "tl.where(cell <= cells, (keys << 31) + cell,"),
        ("(keys << 31) + cell, 0x7", "(keys << 31) - cell + cells, 0x7"),
        ("seen, hidden = ranked <= last", "seen, hidden = ranked < last"),
        ("token = (step * cells + cell).to(tl.int64)", "token = (step * keep + cell).to(tl.int64)"),
        ("high = ((draw >> 32) | (view << 16))", "high = ((draw >> 32) | (view << 17))"),
        ("lane = index % 4", "lane = 3 - index % 4"),
        ("start = (word * 4) >> 32", "start = (word * 4) >> 31"),
        ("+ start + step + 1) % 4 >= dropped) & (cell < cells)", "+ start + step) % 4 >= dropped) & (cell < cells)"),
        (
            "return found[0], found[1], seed - 2**64 if seed >= 2**63 else seed",
            "return found[0], found[1], seed % 2**63",
        ),
    ],
    "rope3d": [
        ("value % A % (A // 2)", "value % A // 2"),
        ("tl.where(axis == 1, row, column))", "tl.where(axis == 1, column, row))"),
        ("inside = axis < tl.where(valid, 3, 0)", "inside = axis < tl.where(valid, 2, 0)"),
        ("new_even, new_odd = even * cos0 + odd * sin1", "new_even, new_odd = even * cos0 + odd * sin0"),
        ("new_even, new_odd = even * cos0 - odd * sin0", "new_even, new_odd = even * cos0 + odd * sin0"),
        ("written = (number.to(tl.int64) * heads + head) * E", "written = (number.to(tl.int64) * HEADS + head) * E"),
        ("*ctx.grid, not ctx.transposed)", "*ctx.grid, ctx.transposed)"),
        ("place * key_token_stride + head * key_head_stride", "place * query_token_stride + head * query_head_stride"),
    ],
    "yuv_clip": [
        ("source.to(tl.float32) + 0.5 - row_centre", "source.to(tl.float32) - row_centre"),
        ("place.to(tl.float32) + 0.5 - column_centre", "place.to(tl.float32) - column_centre"),
        ("y = top + tl.minimum(tl.maximum(source, 0), height - 1)", "y = top + tl.maximum(source, 0)"),
        ("x = left + tl.minimum(tl.maximum(place, 0), width - 1)", "x = left + tl.minimum(place, width - 1)"),
        ("y // 2 + 2 * (y % 2) - 1, 0)", "y // 2 + (y % 2) - 1, 0)"),
        ("x // 2 + 2 * (x % 2) - 1, 0)", "x // 2 + 2 * (x % 2), 0)"),
        ("return 0.75 * upper + 0.25 * lower", "return 0.5 * upper + 0.5 * lower"),
        ("tl.maximum(light + blue_u * u, 0.0), 255.0), axis=1)", "light + blue_u * u, 255.0), axis=1)"),
        ("weights = total[:, None] * tl.expand_dims(tl.sum(along, axis=1), 0)", "weights = total[:, None] + 0 * reds"),
        ("0.0), 255.0) + 0.5).to(tl.int32)", "0.0), 255.0)).to(tl.int32)"),
        (
            "clip + picture * resolution * resolution * 3",
            "clip + picture.to(tl.int32) * resolution * resolution * 3",
        ),
        (
            "picture = (number // (row_tiles * column_tiles)).to(tl.int64)",
            "picture = number // (row_tiles * column_tiles)",
        ),
    ],
    "yuv_clips": [
        ("told = cuts + picture // pictures * INTEGERS", "told = cuts + picture // pictures * (INTEGERS - 1)"),
        ("by = factors + picture // pictures * FLOATS", "by = factors"),
        ("picture = (picture % pictures).to(tl.int64)", "picture = (picture * 0).to(tl.int64)"),
        ("slot = tl.load(told).to(tl.int64)", "slot = (tl.load(told) * 0).to(tl.int64)"),
        (
            "planes + tl.load(told + 2), planes + tl.load(told + 3)",
            "planes + tl.load(told + 3), planes + tl.load(told + 2)",
        ),
        ("if len(cuts) == len(slots) else", "if len(cuts) else"),
        ("column_taps(tuple(factors[:, :6].max(0)", "column_taps(tuple(factors[:, :6].min(0)"),
    ],
    "yuv_geometry": [
        ("row_support, column_support = max(row_scale, 1.0)", "row_support, column_support = max(row_scale, 0.6)"),
        ("math.ceil((rows - 1) * filters[0] + 2 * filters[2]) + 1", "math.ceil((rows - 1) * filters[0] + filters[2])"),
        ("270: (last, -1, size)", "270: (last, 1, size)"),
        ("first = along * size + last - sideways", "first = along * size + sideways"),
        (
            "luma, chroma = (1 / step, 1 / step) if full_range",
            "luma, chroma = (1 / step, 255 / 224 / step) if full_range",
        ),
        ("return top, height - left - across, down, across", "return top, left, down, across"),
        ("start = max(0, 2 * (first // 2 - 1))", "start = max(0, 2 * (first // 2))"),
        ("2 * ((first + count - 1) // 2 + 2)", "2 * ((first + count - 1) // 2 + 1)"),
    ],
    "kmeans_assign": [
        ("candidates = squares[None, :] - 2.0 * products", "candidates = squares[None, :] - products"),
        ('other=float("inf"))\n        candidates', "other=0.0)\n        candidates"),
        ("label = tl.where(least < best, start + nearest, label)", "label = tl.where(least < best, nearest, label)"),
        ("label = tl.where(least < best", "label = tl.where(least <= best"),
        ("best = tl.minimum(least, best)", "best = least"),
        ("products = tl.dot(left, right, products, input", "products = tl.dot(left, right, input"),
        (
            "row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)\n    best",
            "row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)\n    best",
        ),
        ("total += part * part", "total = part * part"),
    ],
}

# Whose tests look at a file that has none of its own.
TESTED_BY = {"yuv_geometry": ("yuv_clips", "yuv_clip")}


def status_with(kernel: str, old: str, new: str, kernels: Path, tests: Path) -> int:
    """Runs the kernel's tests on a copy of the folder in which `new` stands for `old`."""
    source = (kernels / f"{kernel}.py").read_text(encoding="utf-8")
    assert source.count(old) == 1, f"{kernel}: {source.count(old)} places read {old!r}"
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "kernels"
        shutil.copytree(kernels, copy, ignore=shutil.ignore_patterns("__pycache__"))
        (copy / f"{kernel}.py").write_text(source.replace(old, new), encoding="utf-8")
        child = os.fork()
        if child == 0:
            run_tests(copy, [tests / "kernels" / f"test_{name}.py" for name in TESTED_BY.get(kernel, (kernel,))])
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_tests(kernels: Path, found: list[Path]) -> None:
    """In the child: never returns."""
    import pytest

    import trocar.kernels

    trocar.kernels.__path__ = [str(kernels)]
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    skipped = "not opcheck and not compile and not refuses"
    os._exit(pytest.main([*map(str, found), "-x", "-q", "-p", "no:cacheprovider", "-k", skipped]))


def main() -> None:
    (kernel,) = sys.argv[1:]
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise SystemExit("set TRITON_INTERPRET=1: the faults run in the interpreter")
    import torch  # noqa: F401  loaded once, for all children
    import triton  # noqa: F401

    import trocar.kernels

    kernels = next(path for path in map(Path, trocar.kernels.__path__) if (path / f"{kernel}.py").exists())
    tests = Path(__file__).parent
    header = "from __future__ import annotations\n"
    found = {"(no fault)": status_with(kernel, header, header, kernels, tests)}
    for old, new in FAULTS[kernel]:
        found[f"{old} -> {new}"] = status_with(kernel, old, new, kernels, tests)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
