"""Every example of docs/loaders.md runs as it is written, apart from sizes, and does what the page says."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from clips import write_numbered

from trocar.loaders.clip_loader import clip_loader
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.decode.batch import ClipBatch

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "loaders.md").read_text(encoding="utf-8")
SECTIONS = [section.partition("\n")[::2] for section in PAGE.split("\n## ")]
BLOCKS = {title: re.findall(r"```python\n(.*?)```", text, re.DOTALL) for title, text in SECTIONS}
SMALLER = [("resolution=224", "resolution=32"), ("image_size=224", "image_size=32")]
FRAMES = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    (folder / "videos").mkdir()
    for video_id, name in enumerate(("a.mp4", "b.mp4")):
        write_numbered(folder / "videos" / name, 80, video_id=video_id, gop=25, b_frames=2)
    index_corpus([folder / "videos"], folder / "corpus", workers=1, progress=False)
    return folder


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Runs the examples of a section, one after the other, and returns their names."""
    monkeypatch.chdir(folder)

    def run_section(title: str, *changes: tuple[str, str]) -> dict[str, Any]:
        names: dict[str, Any] = {"__name__": "example"}
        exec(BLOCKS[SECTIONS[0][0]][0], names)
        for block in BLOCKS[title]:
            for old, new in (*SMALLER, *changes):
                block = block.replace(old, new)
            # DALI reads the source of a graph.
            path = folder / f"{title.replace(' ', '_')}.py"
            path.write_text(block, encoding="utf-8")
            exec(compile(block, str(path), "exec"), names)
        return names

    return run_section


def test_the_examples_are_these() -> None:
    """Each of them has its test below."""
    assert {title: len(blocks) for title, blocks in BLOCKS.items() if blocks} == {
        SECTIONS[0][0]: 1,
        "A PyTorch loop": 1,
        "Evaluation": 1,
        "PyTorch Lightning": 1,
        "Hugging Face Trainer": 1,
        "Parts of your own": 1,
        "DALI": 1,
        "Order and resuming": 1,
        "What it costs": 2,
        "Remote files": 1,
        "Broken files": 1,
    }


def untrained() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.nn.Linear(3 * 4**3, 2).weight


def test_the_pytorch_loop(run) -> None:
    before = untrained()
    torch.manual_seed(0)
    names = run("A PyTorch loop")
    loader = names["loader"]
    assert (len(loader), loader.total.clips, loader.number) == (2, 8, 8)
    assert names["batch"].frames.shape == (2, FRAMES, 32, 32, 3)
    assert names["loss"].isfinite()
    assert not torch.equal(names["model"][2].weight.cpu(), before)


def test_the_fields_of_a_batch(folder, run) -> None:
    (batch,) = clip_loader(
        run(SECTIONS[0][0])["clips"], batch=4, num_frames=FRAMES, stride=4, resolution=32, device="cpu"
    )
    (table,) = re.findall(r"## What is in a batch\n(.*?)\n\n`batch", PAGE, re.DOTALL)
    fields = re.findall(r"^\| `(.+?)`(?:, `(.+?)`)? \| (.*?) \|", table, re.MULTILINE)
    told = {name: shape for first, second, shape in fields for name in (first, second) if name}
    assert set(told) == set(ClipBatch.__dataclass_fields__)
    sizes = {"B": 4, "T": FRAMES, "R": 32, "3": 3}
    for name, shape in told.items():
        value = getattr(batch, name)
        axes, _, dtype = shape.partition(") ")
        if dtype:
            assert tuple(value.shape) == tuple(sizes[axis] for axis in re.findall(r"\w", axes))
            assert str(value.dtype).removeprefix("torch.") == dtype
    assert len(batch.labels) == 4
    assert batch.to("cpu").frames.equal(batch.frames)


def test_averaged_logits(run) -> None:
    names = run("Evaluation")
    loader, model = names["loader"], names["model"]
    assert len(loader) == 3
    # Once more, item by item.
    with torch.inference_mode():
        for item, row in enumerate(names["clips"]):
            (batch,) = clip_loader(
                [row],
                batch=6,
                num_frames=FRAMES,
                stride=4,
                resolution=32,
                training=False,
                segments=2,
                crops=3,
                device="cpu",
            )
            logits = model(batch.frames.permute(0, 4, 1, 2, 3).float() / 255)
            torch.testing.assert_close(names["scores"][item], logits.mean(dim=0))
    assert 0 <= names["accuracy"] <= 1


# Lightning uses a name of torch's that torch is giving up.
GIVEN_UP_NAME = pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")


# An epoch of two steps is shorter than Lightning's interval of logging, which it warns of.
OFTEN = ("max_epochs=1", "max_epochs=1, log_every_n_steps=1")


@GIVEN_UP_NAME
def test_lightning(run) -> None:
    pytest.importorskip("lightning")
    names = run("PyTorch Lightning", OFTEN)
    trainer = names["trainer"]
    assert (trainer.current_epoch, trainer.global_step) == (1, 2)
    assert trainer.train_dataloader.total.clips == len(names["clips"])
    assert trainer.callback_metrics["validation_loss"].isfinite()


@GIVEN_UP_NAME
# It is not, since a run resumes there.
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
@pytest.mark.parametrize("interrupted_at", [(1, 1), (1, 0)])
def test_lightning_resumes(run, tmp_path, interrupted_at) -> None:
    """Within an epoch, and at its end: every clip number comes once."""
    lightning = pytest.importorskip("lightning")
    names = run("PyTorch Lightning", OFTEN)
    seen: list[int] = []

    class Interrupted(names["Classifier"]):
        stops = True

        def training_step(self, batch, batch_index):
            if self.stops and (self.current_epoch, batch_index) == interrupted_at:
                raise RuntimeError("interrupted")
            seen.extend(batch.numbers.tolist())
            return super().training_step(batch, batch_index)

    def trainer() -> Any:
        saving = lightning.pytorch.callbacks.ModelCheckpoint(
            tmp_path, every_n_train_steps=interrupted_at[1] or None, save_last=True
        )
        return lightning.Trainer(max_epochs=3, logger=False, callbacks=[saving], log_every_n_steps=1)

    with pytest.raises(RuntimeError, match="interrupted"):
        trainer().fit(Interrupted(), names["Clips"]())
    model = Interrupted()
    model.stops = False
    trainer().fit(model, names["Clips"](), ckpt_path=tmp_path / "last.ckpt")
    assert seen == list(range(12))


def test_hugging_face(run) -> None:
    pytest.importorskip("accelerate")
    names = run("Hugging Face Trainer")
    trainer, loader = names["trainer"], names["loader"]
    assert (trainer.state.global_step, loader.total.clips, loader.number) == (2, 4, 4)
    assert np.isfinite(trainer.state.log_history[-1]["train_loss"])


def test_parts_of_ones_own(run) -> None:
    names = run("Parts of your own")
    batch = names["batch"]
    assert batch.frames.shape == (2, FRAMES, 32, 32, 3)
    assert batch.labels == [names["clips"][item][2] for item in names["source"].items([0, 1])]
    assert len(names["files"]) == 2
    # Only the first two of the four rows of blocks that carry the number: never both halves of the word.
    crop = names["UpperHalf"]().crop(names["Box"](0, 0, 128, 96), seed=0, draw=3)
    assert crop.box.top + crop.box.height <= 48


def test_dali(run, folder) -> None:
    pytest.importorskip("nvidia.dali", reason="needs DALI: pip install '.[dali]'")
    pytest.importorskip("trocar.loaders.dali")
    names = run("DALI", ('loader="dali"', 'loader="dali", threads=1, decoders=2'))
    loader, batch = names["loader"], names["batch"]
    assert loader.total.clips == 4
    plain = clip_loader(names["clips"], batch=2, num_frames=FRAMES, stride=4, resolution=32, loader="cpu")
    expected = list(plain)[-1]
    assert batch.numbers.tolist() == expected.numbers.tolist()
    for frames, like, draw in zip(batch.frames.cpu().float(), expected.frames.cpu().float(), batch.draws, strict=True):
        factor = np.random.default_rng((int(draw), 0)).uniform(0.8, 1.2)
        assert frames.mean() == pytest.approx(float((like * factor).clamp(max=255).mean()), abs=3)


def test_resuming(run) -> None:
    names = run("Order and resuming")
    assert names["number"] == 6
    assert names["seen"] == [[first, first + 1] for first in range(0, 20, 2)]


def test_what_it_costs(run, capsys) -> None:
    names = run("What it costs")
    lines = capsys.readouterr().out.splitlines()
    pattern = r"(\d+) clips, (\d+) frames decoded, (\d+) a clip"
    costs = [tuple(map(int, match.groups())) for line in lines if (match := re.fullmatch(pattern, line))]
    (clips_once, frames_once, each_once), (clips_reused, frames_reused, each_reused) = costs
    assert (clips_once, clips_reused) == (4, 16)
    assert frames_once <= frames_reused < 2 * frames_once
    assert each_reused < each_once / 2
    assert all(re.fullmatch(r"amplification \d\.\d, [\d,]+ bytes, 0 failures", line) for line in lines[1::2])
    assert names["labels"] == ["by path", "by id", "by row"]


def test_remote_files(run, folder, capsys) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/videos/a.mp4", (folder / "videos" / "a.mp4").read_bytes())
    try:
        names = run("Remote files")
    finally:
        memory.rm("/videos", recursive=True)
    assert names["batch"].labels == ["cut"]
    assert 0 < int(capsys.readouterr().out) < (folder / "videos" / "a.mp4").stat().st_size


def test_broken_files(run, capsys) -> None:
    names = run("Broken files")
    printed = capsys.readouterr().out
    assert len(names["batch"].frames) == 5
    assert printed.count("missing.mp4: cannot be read (No such file or directory)") == 2
    assert printed.count("(item 4 of the list)") == 2
    assert "1 failures in" in printed


def test_links_and_files_exist() -> None:
    headings = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in BLOCKS}
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        is_file = (ROOT / "docs" / target.partition("#")[0]).is_file()
        assert target.startswith("https://") or target.removeprefix("#") in headings or is_file, target
    for name in re.findall(r"`(loaders/\w+\.py)`", PAGE):
        assert (ROOT / name).exists() or "dali" in name, name
