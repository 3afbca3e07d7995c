"""What a checkpoint's files say of its licence, in the order in which they are believed."""

import json

import pytest

from loopline.model.licence import licence_file, licence_of, write_licence

APACHE = "                                 Apache License\n                           Version 2.0, January 2004\n"
CARD = "---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n"


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({}, None),
        ({"README.md": "# A model\nlicense: mit\n"}, None),
        ({"README.md": CARD}, "apache-2.0"),
        ({"MODEL_CARD.md": CARD}, "apache-2.0"),
        ({"config.json": json.dumps({"license": "MIT"})}, "mit"),
        ({"LICENSE": APACHE}, "apache-2.0"),
        ({"LICENCE.txt": "MIT License\n\nCopyright"}, "mit"),
        ({"LICENSE": "Terms of our own\n"}, "other"),
        ({"LICENSE": "Terms of our own\n", "README.md": CARD}, "apache-2.0"),
        ({"LICENSE": "SPDX-License-Identifier: CC-BY-4.0\n", "README.md": CARD}, "cc-by-4.0"),
    ],
)
def test_the_licence_comes_from_the_files(tmp_path, files, name):
    for file, text in files.items():
        (tmp_path / file).write_text(text)
    assert licence_of(tmp_path) == name


def test_what_is_written_for_a_converted_model_is_read_back(tmp_path):
    write_licence(tmp_path, {"general.license": "apache-2.0", "general.organization": "A lab"})
    assert licence_of(tmp_path) == "apache-2.0"
    assert licence_file(tmp_path) == tmp_path / "LICENSE"
    assert "By: A lab" in (tmp_path / "LICENSE").read_text()


def test_metadata_without_a_licence_writes_no_file(tmp_path):
    write_licence(tmp_path, {"general.name": "A model"})
    assert licence_file(tmp_path) is None
