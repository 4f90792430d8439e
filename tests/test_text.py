import pytest

from lightconv.text import printable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Möwe 鴎 [x] $y$", "Möwe 鴎 [x] $y$"),
        ("two\nlines", "two\nlines"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("bell\a", "bell\\x07"),
        ("caf\udce9", "caf\\udce9"),
    ],
)
def test_printable(text, expected):
    assert printable(text) == expected
