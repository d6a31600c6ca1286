"""`run.attention`: which of PyTorch's kernels computes attention. `auto` times them once, at a run's start on a GPU.

A forward pass of the run's own model, attention left out, tells what a step asks of it: sizes and strides of queries, keys and
values, with gradients or without. Each kernel computes just that, there and back, and what a part's calls take together decides.
The first rank measures, the others take what it found, and RUN/attention.json keeps it: a run that goes on on such a card computes
as it did.

The chosen kernel comes first in PyTorch's order, before anything is compiled or captured. What it does not take, float32 for
example, falls to the next. FlashAttention 3 and 4 take the place of PyTorch's own by PyTorch's switch, where it has one.

Shapes: queries, keys, values (B, H, N, E) of B clips, H heads, N tokens, E values a head; packed (L, H, E), L tokens.
"""

from __future__ import annotations

import importlib
import inspect
import json
import statistics
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch.nn import attention as switches
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...loaders.corpus.whole_file import write_text_whole
from ...ssl import attention
from ...ssl.objective import MaskSource, Objective
from ..config.settings import AttentionKernel, Config, ConfigError
from ..ranks.distributed import World
from .body import pass_forward

ATTENTION_FILE = "attention.json"
KERNELS = tuple(name for name in get_args(AttentionKernel) if name not in ("auto", "torch"))
CUDNN, FLASH, EFFICIENT = SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION
BACKENDS = {"cudnn": CUDNN, "flash": FLASH, "flash3": FLASH, "flash4": FLASH, "efficient": EFFICIENT}
IMPLEMENTATIONS = {"flash3": "FA3", "flash4": "FA4"}
# A kernel has to be faster by so much than those before it in KERNELS: of equal ones every run takes the same.
MARGIN = 0.03
WARMUP, REPEATS, HOLD_CYCLES = 2, 5, 2_000_000
_switched = ExitStack()  # what this process has changed in PyTorch


@dataclass(frozen=True)
class Call:
    """What attention is handed: sizes and strides of queries, keys and values. offsets, longest: of packed ones, else empty."""

    layouts: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    dtype: torch.dtype
    device: torch.device
    has_gradients: bool
    offsets: tuple[int, ...] = ()
    longest: int = 0

    def made(self) -> Callable[[], None]:
        """Such a call, of random numbers, forward and where there are gradients back; PyTorch's generators stay as they are."""
        generator = torch.Generator(self.device).manual_seed(0)
        parts = [
            torch.empty_strided(sizes, strides, dtype=self.dtype, device=self.device).normal_(generator=generator)
            for sizes, strides in self.layouts
        ]
        function: Callable[..., torch.Tensor] = F.scaled_dot_product_attention
        more: tuple[Any, ...] = ()
        if self.offsets:
            offsets = torch.tensor(self.offsets, dtype=torch.int32, device=self.device)
            function, more = attention.packed_attention, (offsets, self.longest)
        if not self.has_gradients:
            return lambda: _without_gradients(function, *parts, *more)
        parts = [part.requires_grad_() for part in parts]

        def there_and_back() -> None:
            mixed = function(*parts, *more)
            torch.autograd.grad(mixed, parts, torch.ones_like(mixed))

        return there_and_back


@torch.no_grad()
def _without_gradients(function: Callable[..., torch.Tensor], *arguments: Any) -> None:
    function(*arguments)


@dataclass(frozen=True)
class Choice:
    """kernel: of KERNELS, or torch, which leaves it to PyTorch. milliseconds: of a part's attention, by kernel. absent: why others
    have none, by kernel."""

    kernel: str
    milliseconds: dict[str, float] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        timed = sorted(self.milliseconds.items(), key=lambda item: item[1])
        told = ", ".join(f"{name} {milliseconds:.2f}" for name, milliseconds in timed)
        text = self.kernel + (f"; milliseconds of a part's attention: {told}" if told else "")
        return text + (f"; not here: {', '.join(self.absent)}" if self.absent else "")


def choose_attention(
    config: Config,
    world: World,
    objective: Objective,
    masks: MaskSource,
    seconds: Callable[[Callable[[], None]], float] | None = None,
) -> Choice | None:
    """Puts a kernel first, the same on all ranks, within `attention_restored`. None where nothing is chosen, as by auto on a CPU.

    objective: on its device, not yet compiled or spread over ranks. seconds: what a call takes (default: by the GPU's events).
    Raises ConfigError where run.attention names a kernel that is not here or does not compute what the run needs.
    """
    _switched.close()
    wanted = config.run.attention
    if wanted == "torch" or (wanted == "auto" and not _has_kernels(world.device)):
        return None
    if not _has_kernels(world.device):
        raise ConfigError(
            f"run.attention: {wanted!r} is a kernel for NVIDIA GPUs, and the run is on the CPU; set run.attention=auto"
        )
    assert world.device.type != "cuda" or not torch.cuda.is_current_stream_capturing()
    if wanted == "auto":
        choice = _agreed(config, world, lambda: trial(attention_calls(config, world, objective, masks), seconds))
    else:
        calls, choice = attention_calls(config, world, objective, masks), Choice(wanted)
        if absent := trial(calls, _computed, (wanted,)).absent:
            raise ConfigError(
                f"run.attention: {wanted!r} cannot compute this run: {absent[wanted]}; set run.attention=auto"
            )
    if choice.kernel != "torch":
        _switch(_switched, choice.kernel, alone=False)
    if world.is_first:
        print(f"run.attention: {choice}", file=sys.stderr, flush=True)
    return choice


@contextmanager
def attention_restored() -> Iterator[None]:
    """Behind it PyTorch's order is what it was before."""
    with _switched:
        yield


def keep_attention(config: Config, world: World, choice: Choice | None) -> None:
    """Into RUN/attention.json, for when the run goes on."""
    if choice is not None and choice.milliseconds and world.is_first:
        path = Path(config.run.dir) / ATTENTION_FILE
        write_text_whole(path, json.dumps({**_kept(path), _card_and_size(config, world): asdict(choice)}, indent=1))


def attention_calls(config: Config, world: World, objective: Objective, masks: MaskSource) -> Counter[Call]:
    """What a part of this rank's first batch asks of attention, and how often."""
    found = Counter[Call]()
    own, packed = F.scaled_dot_product_attention, attention.packed_attention

    def note(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *packing: Any) -> torch.Tensor:
        layouts = tuple((tuple(part.shape), part.stride()) for part in (queries, keys, values))
        found[Call(layouts, queries.dtype, queries.device, queries.requires_grad, *packing)] += 1
        return queries  # of the result's shape

    def note_packed(*arguments: Any) -> torch.Tensor:
        *parts, offsets, longest = arguments
        return note(*parts, tuple(offsets.tolist()), longest)

    F.scaled_dot_product_attention = lambda *parts, **_: note(*parts)
    attention.packed_attention = note_packed
    try:
        pass_forward(config, world, objective, masks)
    finally:
        F.scaled_dot_product_attention, attention.packed_attention = own, packed
    return found


def trial(
    calls: Counter[Call],
    seconds: Callable[[Callable[[], None]], float] | None = None,
    kernels: tuple[str, ...] = KERNELS,
) -> Choice:
    """Times the kernels, each alone, and chooses; torch where none of them computes all of the calls."""
    seconds = seconds or _gpu_seconds
    milliseconds, absent = {}, {}
    for kernel in kernels:
        with ExitStack() as switched, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # why kernels that are not asked for are not taken
            try:
                _switch(switched, kernel, alone=True)
                milliseconds[kernel] = 1000 * sum(number * seconds(call.made()) for call, number in calls.items())
            except (ImportError, RuntimeError, ValueError) as error:
                absent[kernel] = str(error).partition("\n")[0]
    torch.cuda.empty_cache()
    fastest = min(milliseconds.values(), default=0.0)
    chosen = next((kernel for kernel, time in milliseconds.items() if time <= (1 + MARGIN) * fastest), "torch")
    return Choice(chosen, milliseconds, absent)


def _switch(switched: ExitStack, kernel: str, alone: bool) -> None:
    """Until `switched` is closed. alone: without the others behind it. Raises ImportError, RuntimeError or ValueError."""
    if kernel in IMPLEMENTATIONS:
        if not hasattr(switches, "activate_flash_attention_impl"):
            raise RuntimeError(f"PyTorch {torch.__version__} has no switch for it")
        switches.activate_flash_attention_impl(IMPLEMENTATIONS[kernel])
        switched.callback(switches.restore_flash_attention_impl)
    first = BACKENDS[kernel]
    if alone:
        switched.enter_context(sdpa_kernel(first))
        return
    if "set_priority" not in inspect.signature(sdpa_kernel).parameters:
        raise RuntimeError(f"PyTorch {torch.__version__} has one order of kernels only")
    order = list(dict.fromkeys([first, FLASH, EFFICIENT, CUDNN, SDPBackend.MATH]))
    switched.enter_context(sdpa_kernel(order, set_priority=True))
    compiler: Any = importlib.import_module("torch.compiler.config") if find_spec("torch.compiler.config") else None
    if hasattr(compiler, "cache_key_tag"):  # what was compiled for one kernel is not to be found by runs with another
        switched.enter_context(compiler.patch(cache_key_tag=f"{compiler.cache_key_tag} attention {kernel}"))


def _agreed(config: Config, world: World, measure: Callable[[], Choice]) -> Choice:
    """The first rank's: kept by the run, or measured."""
    names, choice = (*KERNELS, "torch"), None
    if world.is_first:
        kept = _kept(Path(config.run.dir) / ATTENTION_FILE).get(_card_and_size(config, world))
        choice = Choice(**kept) if kept else measure()
    kernel = names[world.from_first(names.index(choice.kernel) if choice else 0)]
    return choice or Choice(kernel)


def _kept(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _card_and_size(config: Config, world: World) -> str:
    card = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "no GPU"
    clips, data = f"{config.optim.clips_at_once} clips on {world.size} ranks", config.data
    return f"{card}, PyTorch {torch.__version__}, {clips}, {data.frames} x {data.resolution}, {config.run.precision}"


def _has_kernels(device: torch.device) -> bool:
    return device.type == "cuda"


def _computed(call: Callable[[], None]) -> float:
    call()
    return 0.0


def _gpu_seconds(call: Callable[[], None]) -> float:
    """The GPU's time, which is held back until the call is queued; the median of REPEATS calls."""
    found = []
    for _ in range(WARMUP + REPEATS):
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(HOLD_CYCLES)
        first.record()
        call()
        last.record()
        last.synchronize()
        found.append(first.elapsed_time(last) / 1000)
    return statistics.median(found[WARMUP:])
