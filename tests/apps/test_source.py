from __future__ import annotations

import pytest

from varvel.apps.errors import BadOptions
from varvel.apps.source import SourceRefused, parse, requirements_file

BLOCK = """\
# /// script
# requires-python = ">=3.11"
# dependencies = ["six", "attrs>=20"]
#
# [tool.uv]
# override-dependencies = ["attrs==23.1"]
#
# [tool.varvel]
# name = "block"
# keep_alive = 7
# ///
app = None
"""


def test_the_script_block_gives_requirements_overrides_and_settings() -> None:
    source = parse(BLOCK, "app.py")
    assert source.needs.requirements == ("six", "attrs>=20")
    assert source.needs.overrides == ("attrs==23.1",)
    assert source.needs.python == ">=3.11"
    assert source.options.name == "block"
    assert source.options.scaling == {"keep_alive": 7.0}


@pytest.mark.parametrize(
    "block",
    [
        "# /// script\n# dependencies = [\n# ///\n",
        "# /// script\n# dependencies = ['not a requirement!']\n# ///\n",
        "# /// script\n# dependencies = 'six'\n# ///\n",
        "# /// script\n# requires-python = 'new'\n# ///\n",
        "# /// script\n# [tool.varvel]\n# nme = 'x'\n# ///\n",
        "# /// script\n# ///\n\n# /// script\n# dependencies = []\n# ///\n",
    ],
)
def test_a_broken_script_block_is_refused_and_names_the_file(block: str) -> None:
    if block.startswith("# /// script\n# ///\n"):
        block = BLOCK + "\n" + BLOCK
    with pytest.raises(BadOptions, match=r"app\.py"):
        parse(block, "app.py")


def test_a_file_that_is_not_python_is_refused_with_its_line() -> None:
    with pytest.raises(SourceRefused, match="line 2"):
        parse("x = 1\ndef f(:\n", "app.py")


def test_fal_classes_and_their_literal_requirements_are_seen_without_running_the_file() -> None:
    text = "import fal\nclass A(fal.App):\n    requirements = ['six', ['attrs']]\n"
    text += "class B(fal.App):\n    requirements = make()\n"
    source = parse(text, "app.py")
    assert source.imports_fal
    assert source.fal_classes == {"A": ("six", "attrs"), "B": None}


def test_names_are_seen_wherever_import_would_bind_them() -> None:
    source = parse("try:\n    import a.b as c\nexcept ImportError:\n    c = None\nif c:\n    app = 1\n", "app.py")
    assert {"c", "app"} <= source.names
    assert not source.open_ended
    assert parse("from x import *\n", "app.py").open_ended
    assert parse("globals()['app'] = 1\n", "app.py").open_ended


def test_a_requirements_file_is_read_without_comments_and_continued_lines() -> None:
    text = "# top\nsix==1.16.0  # why\n\nattrs[tests] \\\n  >=20\nx @ https://example.com/x.whl#egg=x\n"
    assert requirements_file(text) == ("six==1.16.0", "attrs[tests]    >=20", "x @ https://example.com/x.whl#egg=x")


@pytest.mark.parametrize("line", ["-r other.txt", "--index-url https://x", "six==1 --hash=sha256:00", "???"])
def test_options_in_a_requirements_file_are_refused(line: str) -> None:
    with pytest.raises(BadOptions, match=r"requirements\.txt"):
        requirements_file(line)
