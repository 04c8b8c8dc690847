# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The documentation builds as a site without a warning, and every page is in its navigation."""

import os
import re
import subprocess
import sys

import pytest
import tiny

DOCS = tiny.ROOT / "docs"


def test_every_page_is_in_the_navigation():
    named = re.findall(r": ([\w/]+\.md)$", (tiny.ROOT / "mkdocs.yml").read_text(), re.M)
    written = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert written == {name for name in named if not name.startswith("reference/")}
    assert len(named) == len(set(named))


@pytest.mark.slow  # imports every command
def test_the_site_builds(tmp_path):
    pytest.importorskip("mkdocs_gen_files")
    found = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=tiny.ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    page = lambda name: (tmp_path / "site" / "reference" / f"{name}.html").read_text()
    assert all(f'id="{name}"' in page("commands") for name in ("uso-train", "uso-generate", "uso-convert"))
    assert "stages.*.learning_rate" in page("settings") and "USOPipeline" in page("python")
    outside = set(re.findall(r'(?:src|href)="(https?://[^"]+\.(?:js|css|woff2?))"', page("python")))
    assert not outside  # it works without a network
