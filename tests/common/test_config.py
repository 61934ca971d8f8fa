"""Configuration: the order of strength, what is refused and how, and that the documented files tell the truth."""

import re
from pathlib import Path

import pytest

from common.config import Config, load, parse_override
from common.errors import InvalidInput
from jobs import reference

ROOT = Path(__file__).resolve().parents[2]


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def test_overrides_beat_environment_beats_file_beats_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, "train: {lr: 0.1, rank: 4, batch_size: 2}")
    env = {"SHARPWAVE_TRAIN__LR": "0.2", "SHARPWAVE_TRAIN__RANK": "8", "SHARPWAVE_URL": "not a setting"}
    config = load(path, env=env, overrides={"train.lr": 0.3})
    assert (config.train.lr, config.train.rank, config.train.batch_size) == (0.3, 8, 2)
    assert config.train.alpha == Config().train.alpha


@pytest.mark.parametrize("text", ["train.lr=1e-4", "train.lr=0.0001", "train.lr = 0.0001"])
def test_an_override_is_read_as_a_number_however_it_is_written(text: str) -> None:
    assert load(env={}, overrides=dict([parse_override(text)])).train.lr == 1e-4


@pytest.mark.parametrize("text", ["lr=1", "train.lr", ""])
def test_a_malformed_override_is_refused_with_the_right_form(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"section\.key=value"):
        parse_override(text)


def test_an_unknown_key_lists_the_valid_ones() -> None:
    with pytest.raises(InvalidInput, match=r"'train\.rnak'.*rank") as caught:
        load(env={}, overrides={"train.rnak": 4})
    assert caught.value.param == "train.rnak"
    with pytest.raises(InvalidInput, match=r"'trian'.*train"):
        load(env={"SHARPWAVE_TRIAN__RANK": "4"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("serve.port", 70000),
        ("store.shards", 0),
        ("recall.mode", "psychic"),
        ("train.lr", "fast"),
        ("train.lr", -1),
        ("serve.cors_origins", ["https://page.example/path"]),
        ("serve.cors_origins", ["page.example"]),
    ],
)
def test_a_value_that_breaks_a_rule_is_named_with_its_value(key: str, value: object) -> None:
    with pytest.raises(InvalidInput, match=re.escape(str(value))) as caught:
        load(env={}, overrides={key: value})
    assert caught.value.param == key


@pytest.mark.parametrize("text", ["- a list", "just text"])
def test_a_file_without_sections_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidInput, match="sections"):
        load(write(tmp_path, text), env={})


def test_a_missing_file_is_refused_and_an_empty_one_means_the_defaults(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="not a file"):
        load(tmp_path / "absent.yaml", env={})
    assert load(write(tmp_path, ""), env={}) == Config()


def test_the_hash_follows_the_values_and_not_where_they_came_from(tmp_path: Path) -> None:
    from_file = load(write(tmp_path, "train: {rank: 4}"), env={})
    from_env = load(env={"SHARPWAVE_TRAIN__RANK": "4"})
    assert from_file.hash == from_env.hash != Config().hash


def test_the_shipped_profiles_load_and_local_is_the_defaults() -> None:
    assert load(ROOT / "sharpwave.yaml", env={}) == Config()
    assert load(ROOT / "cluster" / "sharpwave-cluster.yaml", env={}).ray.address == "auto"


def test_every_key_is_in_the_generated_pages() -> None:
    page, defaults = reference.config_page(), reference.default_config()
    for section in Config.model_fields:
        for key in type(getattr(Config(), section)).model_fields:
            assert f"| `{key}` |" in page
            assert f"\n  {key}: " in defaults
