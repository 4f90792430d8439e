"""Every command and snippet of README and docs/ runs as it is typed."""

import re

import pytest
import yaml
from helpers.pages import ROOT, Session, all_blocks, page_blocks, page_names, page_path
from torch import nn

import lightconv as lc

TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
WITH_MORE_CHECKS = {"docs/plug_in.md", "docs/fine_tune.md"}
LINKS = re.compile(r"\]\(([^)#]+)\)")


@pytest.fixture
def session(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Session(tmp_path)


@pytest.mark.parametrize(
    "page", [name for name in page_names() if name not in {"docs/plug_in.md", "docs/fine_tune.md"}]
)
@pytest.mark.pages
def test_page_runs_as_typed(session, page):
    session.run_page(page)


@pytest.mark.pages
def test_plug_in_page_runs_as_typed(session, capsys):
    session.run_page("docs/plug_in.md")
    model = session.names["model"]
    assert "layers swapped: 4, left: 0" in capsys.readouterr().out
    assert model.swapped == {"body.0", "head.0", "stem.downsample.0"}
    # the callback restored the layers that it swapped; those swapped by the line before stay
    assert isinstance(model.body[0], lc.nn.Conv2d)
    assert type(model.head[0]) is type(model.stem.downsample[0]) is nn.Conv2d


@pytest.mark.pages
def test_fine_tune_page_runs_as_typed(session, capsys):
    session.run_page("docs/fine_tune.md")
    printed = capsys.readouterr().out
    assert "from epoch 0: training head" in printed
    assert "from epoch 1: training last_block" in printed


def test_fine_tune_page_shows_a_valid_recipe():
    (recipe,) = page_blocks("docs/fine_tune.md", "yaml")
    callback = lc.FineTuning(**yaml.safe_load(recipe), blocks=[["head"], ["last"]])
    assert [stage.epoch for stage in callback.stages] == [0, 3, 6]


@pytest.mark.parametrize("page", [*page_names(), "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_and_make_targets_exist(page):
    path = page_path(page)
    text = path.read_text()
    for link in LINKS.findall(text):
        if not link.startswith("https://"):
            assert (path.parent / link).exists(), link
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE):
        assert target in TARGETS


def test_readme_is_short():
    assert len(page_path("README.md").read_text().splitlines()) <= 130


@pytest.mark.parametrize("page", page_names())
def test_blocks_name_known_languages(page):
    assert {block.language for block in all_blocks(page)} <= {"", "sh", "python", "yaml"}
