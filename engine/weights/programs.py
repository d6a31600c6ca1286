"""A run's encoder as a program that needs nothing of trocar: torch.export's .pt2, or ONNX.

Shapes: B clips (any number), T frames, R x R pixels, N tokens, D width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...kernels.rope3d import rope3d_reference
from ...loaders.corpus.whole_file import write_whole
from ...ssl.encoder import IMAGENET_MEAN, IMAGENET_STD, VideoEncoder


class EncoderProgram(nn.Module):
    """(B, T, R, R, 3) uint8, RGB -> (B, N, D) float32: what `VideoEncoder` computes of whole clips of its own size, in plain
    PyTorch."""

    positions: torch.Tensor
    places: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor
    blocks: Any

    def __init__(self, encoder: VideoEncoder) -> None:
        super().__init__()
        self.rotary, self.grid, self.heads = encoder.position_kind == "rope", encoder.grid, encoder.heads
        self.stride = (encoder.tubelet, encoder.patch, encoder.patch)
        self.patch_embed, self.blocks, self.norm = encoder.patch_embed, encoder.blocks, encoder.norm
        self.normalized = encoder.last_norm == "tokens"
        self.register_buffer("positions", encoder.positions.float())
        self.register_buffer("places", torch.arange(encoder.num_tokens)[None])
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None, None])
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None, None])

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        pixels = (frames.permute(0, 4, 1, 2, 3).float() / 255 - self.mean) / self.std
        patches = F.conv3d(pixels, self.patch_embed.weight, self.patch_embed.bias, stride=self.stride)
        tokens = patches.flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            tokens = tokens + self._attend(block.attn, block.norm1(tokens))
            tokens = tokens + block.mlp(block.norm2(tokens))
        return self.norm(tokens) if self.normalized else tokens

    def _attend(self, attention: Any, tokens: torch.Tensor) -> torch.Tensor:
        queries, keys, values = attention.qkv(tokens).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        if self.rotary:
            queries, keys = rope3d_reference(queries, keys, self.places, self.grid)
        queries, keys, values = (part.transpose(1, 2) for part in (queries, keys, values))
        mixed = F.scaled_dot_product_attention(queries, keys, values)
        return attention.proj(mixed.transpose(1, 2).flatten(-2))


def example_clips(encoder: VideoEncoder) -> torch.Tensor:
    """Two clips of the encoder's size: a batch of one would become a constant of the program."""
    steps, rows, columns = encoder.grid
    shape = (2, steps * encoder.tubelet, rows * encoder.patch, columns * encoder.patch, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def export_program(encoder: VideoEncoder, path: Path) -> None:
    """Writes a .pt2 of any number of clips: `torch.export.load(path).module()(frames)`."""
    shapes = {"frames": {0: torch.export.Dim("clips")}}
    program = torch.export.export(EncoderProgram(encoder).eval(), (example_clips(encoder),), dynamic_shapes=shapes)
    # torch.export.save asks for its own suffix.
    write_whole(path, lambda target: _saved(program, target))


def export_onnx(encoder: VideoEncoder, path: Path) -> None:
    """Writes an ONNX file with one input, "frames", of any number of clips, and one output, "tokens". Needs onnx and onnxscript."""
    program = torch.onnx.export(
        EncoderProgram(encoder).eval(),
        (example_clips(encoder),),
        dynamo=True,
        verbose=False,
        input_names=["frames"],
        output_names=["tokens"],
        dynamic_shapes={"frames": {0: torch.export.Dim("clips")}},
    )
    assert program is not None
    write_whole(path, lambda target: program.save(target))


def _saved(program: torch.export.ExportedProgram, target: Path) -> None:
    with target.open("wb") as file:
        torch.export.save(program, file)
