"""Configs: every one that ships loads; what is wrong is refused with the key, the value and the fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from trocar.engine.config.file import CONFIGS, load_config
from trocar.engine.config.settings import ConfigError, ObjectiveConfig, OptimConfig
from trocar.engine.step.build import build_model

SHIPPED = sorted(path.stem for path in CONFIGS.glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_config_loads_builds_and_round_trips(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    copy = tmp_path / "copy.yaml"
    copy.write_text(config.to_yaml())
    assert load_config(copy) == config
    build_model(load_config(name, ["model.depth=1"]))


def test_surgrec_mae_is_the_papers_recipe() -> None:
    config = load_config("surgrec_mae")
    assert (config.model.encoder, config.model.patch, config.model.tubelet, config.model.decoder_depth) == (
        "base",
        16,
        2,
        4,
    )
    assert (config.data.frames, config.data.resolution, config.data.stride) == (16, 224, 4)
    assert (config.objective.mask_ratio, config.objective.targets, config.model.positions) == (0.9, "channel", "flat")
    assert config.optim.epochs == 150


def test_the_unbalanced_recipe_differs_in_what_it_draws_from_alone() -> None:
    balanced, unbalanced = load_config("surgrec_mae"), load_config("surgrec_mae_unbalanced")
    assert (balanced.data.tree, balanced.data.balance, unbalanced.data.tree) == ("corpus/tree", 1.0, None)
    same = load_config("surgrec_mae", ["data.tree=null", "run.dir=runs/surgrec_mae_unbalanced"])
    assert same == unbalanced


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.balance=1.5", r"data\.balance: 1\.5 is not accepted; give 0 \(the corpus as it is\)"),
        ("data.source_caps={web: 2}", r"data\.source_caps: .* shares between 0 and 1"),
        ("data.source_caps=[web]", r"data\.source_caps: .* give names with values"),
        ("data.exclude=one", r"data\.exclude: 'one' is not accepted; give a list"),
        ("data.phases=[{balance: 0}]", r"data\.phases\[0\]\.first_draw: missing"),
        (
            "data.phases=[{first_draw: 5, ballance: 0}]",
            r"data\.phases\[0\]\.ballance: unknown key; did you mean balance",
        ),
        ("data.phases=[{first_draw: 5, balance: 2}]", r"data\.phases\[0\]\.balance: 2\.0 is not accepted"),
    ],
)
def test_refused_sampling(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("surgrec_mae", [override])


def test_overrides() -> None:
    settings = [
        "optim.steps=7",
        "optim.base_learning_rate=1e-3",
        "data.crop_scale=[0.2, 1]",
        "data.corpus=some where/ä",
    ]
    config = load_config("demo_cpu", settings)
    assert config.optim.steps == 7
    assert config.optim.base_learning_rate == 1e-3
    assert config.data.crop_scale == (0.2, 1.0)
    assert config.data.corpus == "some where/ä"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.step=7", r"optim\.step: unknown key; did you mean steps\?"),
        ("optimizer.steps=7", r"optimizer: unknown key; did you mean optim\?"),
        ("optim.steps", "write section.key=value"),
        ("steps=7", "write section.key=value"),
        ("optim.steps=seven", r"optim\.steps: 'seven' is str, not int"),
        ("optim.steps=1.5", r"optim\.steps: 1\.5 is float, not int"),
        ("optim.steps=true", r"optim\.steps: True is bool, not int"),
        ("optim.steps=-1", r"optim\.steps: -1 is not accepted"),
        ("optim.steps=null", r"optim\.steps: None is not accepted; give steps, or epochs"),
        ("optim.warmup=1", r"optim\.warmup: 1\.0 is not accepted"),
        ("optim.base_learning_rate=fast", r"'fast' is not a number"),
        ("optim.base_learning_rate=.nan", "is not a finite number"),
        ("optim.accumulation=3", r"a divisor of optim\.batch \(8\)"),
        ("optim.betas=[0.9]", "give a list of 2 numbers"),
        ("data.stride=0", r"data\.stride: 0 is not accepted"),
        ("data.sample_fps=5", "exclude each other; set one of them to null"),
        ("data.resize=fats", r"did you mean fast\?"),
        ("data.resolution=[224, 320]", r"data\.resolution: \[224, 320\] .* clips are square: give their side"),
        ("data.resolution=224x320", r"'224x320' .* clips are square: give their side"),
        ("data.sizes=[{from_step: 1, resolution: [96, 64]}]", r"data\.sizes\[0\]\.resolution: \[96, 64\] .* square"),
        ("data.crop_scale=[0, 1]", r"data\.crop_scale"),
        ("run.device=gpu", r"run\.device: 'gpu' is not accepted"),
        ("run.tensorboard=yes please", r"is str, not bool"),
        ("model.encoder=giant", r"model\.encoder: 'giant' is not accepted; give one of tiny"),
        ("model.depth=0", r"model\.depth: 0 is not accepted"),
        ("objective.mask_ratio=1", r"objective\.mask_ratio"),
        ("objective.decoder_mask_ratio=0.3", r"objective\.decoder_mask_ratio.*0, 0.25, 0.5 or 0.75"),
        ("objective=3", "write section.key=value"),
        ("data.corpus=[", "is not a YAML value"),
    ],
)
def test_refuses(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("demo_cpu", [override])


def test_refuses_sizes_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="not divisible into 2 x 16 x 16 patches"):
        build_model(load_config("demo_cpu", ["data.resolution=100"]))
    with pytest.raises(ConfigError, match=r"mask ratio 0\.01 masks 0 of 49 cells"):
        build_model(load_config("demo_cpu", ["objective.mask_ratio=0.01"]))
    with pytest.raises(ConfigError, match="must have even rows and columns for a running cell mask, got 7 x 7"):
        build_model(load_config("demo_cpu", ["objective.decoder_mask_ratio=0.5"]))


def test_names_the_nearest_config_and_bad_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"did you mean demo_cpu\?"):
        load_config("demo_cup")
    with pytest.raises(ConfigError, match="no such config file"):
        load_config(tmp_path / "missing.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("run: {")
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        load_config(broken)
    broken.write_text("- run")
    with pytest.raises(ConfigError, match="holds list, not sections"):
        load_config(broken)
    broken.write_text(yaml.safe_dump({"run": {"dir": "x"}, "data": {}}))
    with pytest.raises(ConfigError, match=r"data\.corpus: missing; set it"):
        load_config(broken)
    broken.write_text(yaml.safe_dump({"run": 3, "data": {"corpus": "x"}}))
    with pytest.raises(ConfigError, match="run: holds 3, not a section"):
        load_config(broken)


def test_a_run_that_began_without_max_repeats_goes_on_without(tmp_path: Path) -> None:
    """Its draws stay; named now, it counts."""
    new = [f"run.dir={tmp_path}", "data.corpus=corpus"]
    assert load_config("demo_cpu", new).data.max_repeats == 10
    (tmp_path / "config.yaml").write_text("data: {corpus: corpus, max_repeats: null}")
    assert load_config("demo_cpu", new).data.max_repeats is None
    assert load_config("demo_cpu", [*new, "data.max_repeats=3"]).data.max_repeats == 3


@pytest.mark.parametrize(("section", "key"), [(ObjectiveConfig, "decoder_mask_ratio"), (OptimConfig, "batch")])
def test_null_is_refused_where_the_type_has_none(section: Any, key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}: None is not accepted"):
        section(**{key: None})
