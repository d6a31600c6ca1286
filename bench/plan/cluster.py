"""A cluster as `trocar plan` sees it, `configs/clusters/<name>.yaml`: facts of the machine, prices, rates that are assumed."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path

from ...engine.config.error import ConfigError, require
from ...engine.config.file import CONFIGS, load_settings

CLUSTERS = CONFIGS / "clusters"


@dataclass(frozen=True)
class Assumed:
    """A rate that was not measured by us. source: who says so, or on what it rests."""

    value: float
    source: str

    def __post_init__(self) -> None:
        require(self.value > 0, "value", self.value, "a positive number")
        require(bool(self.source.strip()), "source", self.source, "where the number comes from")


@dataclass(frozen=True)
class AssumedVideos:
    """Of originals or proxies. nvdec_pictures_per_second: of one GPU, all its engines. For what the rest means see `Videos`."""

    bytes_per_span: Assumed | None = None
    pictures_per_span: Assumed | None = None
    core_seconds_per_span: Assumed | None = None
    core_seconds_per_view: Assumed | None = None
    nvdec_pictures_per_second: Assumed | None = None
    bytes_per_frame: Assumed | None = None


@dataclass(frozen=True)
class Prices:
    """In `currency`; null leaves money out. storage_months: how long videos are kept for a run."""

    currency: str = "USD"
    gpu_hour: float | None = None
    core_hour: float | None = None
    terabyte_month: float | None = None
    storage_months: float = 1.0


@dataclass(frozen=True)
class Cluster:
    """device: part of the device's name in rows that were measured on it. gpus_per_node: 0 where the CPU trains, a process a node.
    nvdec_per_gpu: engines. storage_gigabytes_per_second: of a node, or of all nodes together where storage_is_shared.
    exchange_gigabytes_per_second: a GPU's links to the others. memory_gigabytes: of a GPU; of the node where the CPU trains.

    peak_teraflops, utilization: of the matrix units in bfloat16, and the share of it that a training step reaches: what compute is
    taken to be where no row was measured on the device. assumed: rates of originals and of proxies likewise.
    """

    name: str
    device: str
    nodes: int
    gpus_per_node: int
    nvdec_per_gpu: int
    cores_per_node: int
    storage_gigabytes_per_second: float
    storage_is_shared: bool = False
    exchange_gigabytes_per_second: float = 10.0
    memory_gigabytes: float | None = None
    peak_teraflops: Assumed | None = None
    utilization: Assumed | None = None
    originals: AssumedVideos = field(default_factory=AssumedVideos)
    proxies: AssumedVideos = field(default_factory=AssumedVideos)
    packing_core_seconds_per_frame: Assumed | None = None
    prices: Prices = field(default_factory=Prices)

    def __post_init__(self) -> None:
        for key in ("nodes", "cores_per_node", "storage_gigabytes_per_second", "exchange_gigabytes_per_second"):
            require(getattr(self, key) > 0, key, getattr(self, key), "a positive number")
        require(
            self.memory_gigabytes is None or self.memory_gigabytes > 0,
            "memory_gigabytes", self.memory_gigabytes, "a positive number",
        )  # fmt: skip
        for key in ("gpus_per_node", "nvdec_per_gpu"):
            require(getattr(self, key) >= 0, key, getattr(self, key), "a number, 0 or more")

    @property
    def ranks_per_node(self) -> int:
        return max(1, self.gpus_per_node)

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node


def load_cluster(source: str) -> Cluster:
    """A YAML file, or the name of one of ours. Raises ConfigError."""
    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        shipped = {file.stem: file for file in sorted(CLUSTERS.glob("*.yaml"))}
        if source not in shipped:
            near = difflib.get_close_matches(source, shipped, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(
                f"--cluster {source}: no such cluster{hint}; there are {', '.join(shipped)}, or give a YAML file"
            )
        path = shipped[source]
    return load_settings(Cluster, path)
