"""Pictures of features, errors and neighbours, and the same as numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import write_numbered
from PIL import Image
from ranks import JEPA
from runs import TINY

from trocar.engine.cli import main
from trocar.engine.config.error import ConfigError
from trocar.engine.config.file import load_config
from trocar.engine.step.build import build_model
from trocar.engine.view.errors import GREY, SEEN, WRONG, feature_errors, token_errors
from trocar.engine.view.features import principal_components
from trocar.engine.view.neighbours import nearest
from trocar.engine.view.unseen import Unseen, unseen_batch, where_from

ONE_KIND = "objective.masks=[{blocks: 2, scale: [0.3, 0.3]}]"


def test_components_are_those_of_all_clips_and_have_one_sign() -> None:
    """Tokens on a line in 8 dimensions: the first component is the place on it, whichever clip a token is of."""
    torch.manual_seed(0)
    place, direction = torch.randn(2, 8), torch.tensor([0.0, 0, 0, 0, 0, 0, -3.0, 4.0]) / 5
    noise = 0.01 * torch.randn(2, 8, 8)
    found = principal_components(place[..., None] * direction + noise, (2, 2, 2))
    assert found.values.shape == (2, 2, 2, 2, 3)
    first = torch.from_numpy(found.values[..., 0]).flatten(1)
    assert (first - (place - place.mean())).abs().max() < 0.05, "the largest weight is positive, so is the sign"
    assert found.explained[0] > 0.99
    assert found.explained.sum() <= 1 + 1e-9
    colours = found.colours()
    assert colours.dtype == np.uint8
    order = colours[..., 0].flatten()[place.flatten().argsort()].astype(int)
    assert (np.diff(order) >= 0).all()


@pytest.mark.parametrize("positions", ["axes", "rope"])
def test_errors_of_a_jepa_are_its_loss_token_by_token(positions: str) -> None:
    config = load_config("demo_cpu", [*TINY, *JEPA, f"model.positions={positions}", ONE_KIND])
    torch.manual_seed(0)
    model, mask = build_model(config)
    frames = torch.randint(0, 256, (3, 4, 32, 32, 3), dtype=torch.uint8)
    masks = mask(0, [5, 6, 7], 0)
    with torch.no_grad():
        output = model(frames, masks)
    unseen = Unseen(model, 1, frames, masks, output.prediction, ["a", "b", "c"], np.arange(3))
    errors = token_errors(unseen)
    assert errors.shape == (3, *model.encoder.grid)
    hidden = torch.isfinite(errors)
    assert int(hidden.sum()) == int(masks.target.offsets[-2]) < hidden.numel()
    mean = errors.nan_to_num().flatten(1).sum(dim=1) / hidden.flatten(1).sum(dim=1)
    assert torch.allclose(mean, output.clip_loss.float(), atol=1e-6)
    panels = feature_errors(unseen)
    *_, name = panels
    assert name == f"{WRONG}black 0, bright {errors[errors.isfinite()].max():.2g}"
    grey = torch.from_numpy((panels[name] == GREY).all(axis=-1))
    assert grey.float().mean() == pytest.approx(1 - float(hidden.float().mean()))
    assert ((panels[SEEN] == GREY).all(axis=-1) & grey.numpy()).mean() < 0.05, "what is hidden is not grey in both"


def test_errors_of_an_mae_vanish_where_its_prediction_is_right() -> None:
    from trocar.kernels.pixel_loss import patch_targets

    model, mask = build_model(load_config("demo_cpu", [*TINY, "objective.targets=channel"]))
    frames = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    masks = mask(0, [0, 1], 0)
    right = patch_targets(frames, masks.masked, 2, 8, "channel", torch.float32)
    wrong = right.clone()
    wrong[1, 3] += 0.5
    errors = token_errors(Unseen(model, 1, frames, masks, wrong, ["a", "b"], np.arange(2)))
    assert int(torch.isfinite(errors).sum()) == masks.masked.numel()
    expected = torch.zeros(2, model.encoder.num_tokens)
    expected[1, masks.masked[1, 3]] = 0.5
    assert torch.allclose(errors.nan_to_num().flatten(1), expected, atol=1e-6)


def test_the_nearest_rows_leave_out_what_is_not_allowed_or_unknown() -> None:
    angles = np.radians([0, 10, 20, 90, 5])
    unit = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    unit[4] = np.nan
    rows, cosines = nearest(unit, unit[0], 3, np.array([False, True, True, True, True]))
    assert rows.tolist() == [1, 2, 3]
    assert np.allclose(cosines, np.cos(angles[[1, 2, 3]]), atol=1e-6)
    assert nearest(unit, unit[0], 3, np.zeros(5, bool))[0].size == 0


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("views")
    for number in range(3):
        write_numbered(folder / f"{number}.mp4", 60, video_id=number)
    assert main(["index", str(folder), "--out", str(folder / "corpus"), "--workers", "1"]) == 0
    return folder


def test_a_clip_as_pictures_and_numbers(corpus: Path, tmp_path: Path) -> None:
    """From the frame that a player shows at that second on, 25 frames a second."""
    asked = ["view", "clip", str(corpus / "1.mp4"), "1.01", "--frames", "3", "--stride", "2", "--resolution", "32"]
    told = tmp_path / "clip.json"
    assert main([*asked, "--out", str(tmp_path / "clip.png"), "--json", str(told)]) == 0
    numbers = json.loads(told.read_text())
    assert numbers["frames"] == [25, 27, 29]
    assert numbers["seconds"] == pytest.approx([1.0, 1.08, 1.16])
    assert np.asarray(Image.open(tmp_path / "clip.png").convert("RGB")).std() > 10
    assert main([*asked, "--out", str(tmp_path / "clip.gif")]) == 0
    with Image.open(tmp_path / "clip.gif") as moving:
        frames = getattr(moving, "n_frames", 1)
        assert (frames, moving.size, moving.info["duration"]) == (3, (32, 32), 80)
    with pytest.raises(SystemExit):
        main([*asked, "--out", str(tmp_path / "clip.jpg")])


def test_pictures_are_of_held_out_videos_where_there_are_any(corpus: Path) -> None:
    settings = [f"data.corpus={corpus / 'corpus'}", "data.frames=2", "data.stride=1", "data.resolution=32"]
    for held, videos, said in ((["validation.videos=[1.mp4]"], {1}, "held-out"), ([], {0, 1, 2}, "training")):
        config = load_config("demo_cpu", [*settings, *held])
        batch, names = unseen_batch(config, 12)
        assert set(batch.videos.tolist()) == videos
        assert {int(name[0]) for name in names} == videos
        assert said in where_from(config)


def test_neighbours_across_a_corpus(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    embeddings = corpus / "embeddings"
    wanted = ["--frames", "4", "--stride", "2"]
    assert main(["embed", str(corpus / "corpus"), "--out", str(embeddings), "--device", "cpu", *wanted]) == 0
    asked = ["view", "neighbours", str(embeddings), str(corpus / "corpus")]
    files = ["--out", str(tmp_path / "near.png"), "--json", str(tmp_path / "near.json")]
    assert main([*asked, "0.mp4", "0.1", "1.5", "--nearest", "2", *files]) == 0
    first, second = json.loads((tmp_path / "near.json").read_text())["neighbours"]
    assert first["query"]["first_frame"] < second["query"]["first_frame"] <= 1.5 * 25
    for found in (first, second):
        assert len(found["nearest"]) == 2
        assert found["query"]["video"] not in {row["video"] for row in found["nearest"]}
        cosines = [row["cosine"] for row in found["nearest"]]
        assert cosines == sorted(cosines, reverse=True)
    assert np.asarray(Image.open(tmp_path / "near.png").convert("RGB")).std() > 10
    capsys.readouterr()
    assert main([*asked, "gone.mp4", "0.1", *files]) == 2
    assert "gone.mp4: 0 videos" in capsys.readouterr().err
    assert main([*asked, "0.mp4", "99", *files]) == 2
    assert "0.mp4: nothing at 99 s; it lasts" in capsys.readouterr().err


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    from trocar.engine.view.numbers import write_numbers

    write_numbers(tmp_path / "n.json", {"a": np.array([1.5, np.nan]), "b": [torch.tensor(2), {"c": float("inf")}]})
    assert json.loads((tmp_path / "n.json").read_text()) == {"a": [1.5, None], "b": [2, {"c": None}]}


def test_a_suffix_that_is_no_picture_is_refused(tmp_path: Path) -> None:
    from trocar.engine.view.clip import view_clip

    with pytest.raises(ConfigError, match=r"ends in \.png"):
        view_clip("a.mp4", 0.0, tmp_path / "a.txt")
