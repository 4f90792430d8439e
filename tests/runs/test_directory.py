import json

import pytest

from lightconv.runs.directory import write_json


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_non_numbers_become_null(tmp_path, number):
    write_json(tmp_path / "metrics.json", {"test/loss": number, "classes": {"a": [number, 0.5]}, "epochs": 3})

    def refuse(name):
        raise AssertionError(name)

    content = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=refuse)
    assert content == {"test/loss": None, "classes": {"a": [None, 0.5]}, "epochs": 3}
