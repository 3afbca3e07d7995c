"""Licence headers and names on real licence texts of the installation."""

import importlib.metadata

import pytest

from loopline.corpus.document import make_document
from loopline.corpus.licences import detect, step, strip_header

HEADER = "# Copyright 2020 The Authors.\n#\n# Licensed under the Apache License, Version 2.0\n\n"


def test_headers_go_and_everything_else_stays():
    code = '"""Doc."""\n# a comment\nx = 1\n'
    assert strip_header(HEADER + code) == (code, HEADER)
    assert strip_header("#!/usr/bin/env python\n# -*- coding: utf-8 -*-\n" + HEADER + code)[0] == (
        "#!/usr/bin/env python\n# -*- coding: utf-8 -*-\n" + code
    )
    assert strip_header("/* Copyright X.\n * All rights reserved. */\nint x;\n")[0] == "int x;\n"
    assert strip_header("# Adds numbers.\nx = 1\n") == ("# Adds numbers.\nx = 1\n", "")
    assert strip_header("x = 1\n# Copyright later\n") == ("x = 1\n# Copyright later\n", "")
    assert strip_header(code) == (code, "")


@pytest.mark.parametrize(
    ("package", "expected"), [("pytest", "MIT"), ("click", "BSD-3-Clause"), ("openai", "Apache-2.0")]
)
def test_real_licence_files_are_recognised(package, expected):
    files = [f for f in importlib.metadata.files(package) or [] if f.name.lower().startswith("licen")]
    assert files, f"{package} ships no licence file"
    assert detect(files[0].read_text()) == expected


def test_tags_and_texts_without_a_licence():
    assert detect("# SPDX-License-Identifier: MPL-2.0\nx") == "MPL-2.0"
    assert detect("The cat sat on the mat.") is None


def test_the_step_strips_code_names_licences_and_leaves_generated_text():
    documents = [
        make_document("s", "a.py", HEADER + "x = 1\n"),
        make_document("s", "b.py", HEADER),
        make_document("s", "c.md", HEADER + "text"),
        make_document("synthetic/x", "d.py", HEADER + "x"),
    ]
    change = step(documents)
    assert change.removed == {1: "only a licence"}
    assert change.edited[0].text == "x = 1\n"
    assert change.edited[0].licence == change.edited[2].licence == "Apache-2.0"
    assert change.edited[2].text == documents[2].text
    assert set(change.edited) == {0, 2}
