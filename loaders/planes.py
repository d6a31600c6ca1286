"""ClipLoader whose processes decode and leave the rest to the GPU: one kernel makes the clips of a batch.

It is the CPU's loader (`cpu.py`) with planes in place of RGB (`decode/planes.py`, `kernels/yuv_clips.py`).
"""

from __future__ import annotations

from functools import partial

from . import cpu

ClipLoader = partial(cpu.ClipLoader, planes=True)
