import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from lightconv.runs.directory import write_definition
from lightconv.runs.literal import escape_name, escape_references, read_name

TEXTS = st.text(alphabet="\\\\${}?:.ab 'x\"#") | st.sampled_from(
    ["null", "1e3", "yes", "???", "\\\\???", "${oc.env:HOME}"]
)


@given(st.lists(TEXTS))
@settings(max_examples=300, deadline=None)
def test_names_survive_configurations_and_files(names):
    config = OmegaConf.create({"names": [escape_name(name) for name in names]})
    assert [read_name(name) for name in config.names] == names
    resolved = OmegaConf.to_container(config, resolve=True)
    stored = OmegaConf.create(OmegaConf.to_yaml(OmegaConf.create(escape_references(resolved))))
    assert [read_name(name) for name in stored.names] == names


@pytest.mark.parametrize("text", ["plain", "${a}", r"\\${a}", "$${b}", "${"])
def test_stored_texts_are_read_as_they_were(tmp_path, text):
    write_definition(tmp_path, OmegaConf.create({"root": escape_references(text), "same": "${root}"}))
    stored = OmegaConf.load(tmp_path / "config.yaml")
    assert stored.root == stored.same == text
