# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Hostile icon sets: markup that refers outside, expands, nests or never ends; tarballs that unpack without end."""

import gzip
import io
import tarfile

import pytest
from emoji_files import icons, write_tarball
from hypothesis import given, settings
from hypothesis import strategies as st

from uso_jax.common.errors import InputError
from uso_jax.data.emoji import iconify
from uso_jax.data.emoji.iconify import IconSet, read_icon_set
from uso_jax.data.emoji.renderer import Renderer
from uso_jax.data.emoji.svg import MAX_DEPTH, document

resvg_py = pytest.importorskip("resvg_py")
pytest.importorskip("defusedxml")

VIEW = (0, 0, 32, 32)
SVG = 'xmlns:s="http://www.w3.org/2000/svg"'
LINK = 'xmlns:x="http://www.w3.org/1999/xlink"'
OUTSIDE = (
    '<image href="{0}" width="9" height="9"/>',
    f'<s:image {SVG} href="{{0}}" width="9" height="9"/>',
    f'<g {SVG}><s:g><s:image {LINK} x:href="{{0}}" width="9" height="9"/></s:g></g>',
    '<use href="{0}#a"/>',
    f'<use {LINK} x:href="{{0}}#a"/>',
    '<rect width="9" height="9" fill="url({0}#a)"/>',
    '<rect width="9" height="9" fill="URL ( \'{0}#a\' )"/>',
    '<rect width="9" height="9" style="fill:url({0}#a)"/>',
    '<rect width="9" height="9" fill="\\75rl({0}#a)"/>',
    '<style>@import "{0}";</style>',
    '<filter id="f"><feImage href="{0}"/></filter><rect filter="url(#f)" width="9" height="9"/>',
    '<text font-family="{0}">a</text>',
    "<script>a()</script>",
    '<foreignObject><a href="{0}"/></foreignObject>',
    '<g onload="a()"/>',
    '</svg><image href="{0}"/><svg>',
    '<!DOCTYPE a [<!ENTITY b SYSTEM "{0}">]><g>&b;</g>',
    "<g>&b;</g>",
    '<?xml-stylesheet href="{0}"?><g><tref href="{0}"/></g>',
)


@pytest.mark.parametrize("body", OUTSIDE)
def test_nothing_outside_the_icon_is_named(body, tmp_path):
    secret = tmp_path / "s.svg"
    secret.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="32" height="32"><rect id="a" width="32"/></svg>')
    with pytest.raises(InputError, match=r"external content|cannot be rendered"):
        document(body.format(secret), VIEW, 32)


def test_references_within_the_icon():
    body = (
        '<defs><path id="curl" d="M0 0h32v32z"/><linearGradient id="b"><stop stop-color="red"/></linearGradient></defs>'
    )
    made = document(body + '<use fill="url(#b)" href="#curl"/>', VIEW, 32)
    assert 'href="#curl"' in made and 'fill="url(#b)"' in made
    assert "a text" not in document("<g>a text<!-- a text --></g>", VIEW, 32)


def test_depth_size_and_view():
    with pytest.raises(InputError, match=f"more than {MAX_DEPTH} levels deep"):
        document("<g>" * 20_000 + "</g>" * 20_000, VIEW, 32)
    with pytest.raises(InputError, match="characters; the limit is"):
        document("<g/>" * 300_000, VIEW, 32)
    for wrong in ('16"><image', float("nan"), 0, -1, 1e9, None, True, [16]):
        with pytest.raises(InputError, match=r"has the size .*, which is not one"):
            document("<g/>", (0, 0, wrong, 32), 32)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_markup_of_any_kind_is_drawn_or_refused(data):
    pieces = [
        "<g>",
        "</g>",
        "<path d='",
        "M0 0",
        "'/>",
        "<s:image ",
        SVG,
        " href='#a'",
        "&lt;",
        "&#0;",
        "]]>",
        "\ud800",
        "<",
    ]
    body = "".join(data.draw(st.lists(st.sampled_from(pieces), max_size=12)))
    try:
        made = document(body, VIEW, 32)
    except InputError as error:
        assert str(error).startswith(("cannot be", "holds", "is nested"))
    else:
        assert "image" not in made


def test_a_drawing_without_end_is_ended():
    doubled = "".join(f'<g id="a{i}"><use href="#a{i - 1}"/><use href="#a{i - 1}"/></g>' for i in range(1, 40))
    bomb = f'<defs><g id="a0"><rect width="9" height="9"/></g>{doubled}</defs><use href="#a39"/>'
    team = IconSet("noto", 32, 32, icons("noto")["icons"] | {"bomb": {"body": bomb}}, {})
    with Renderer(seconds=4.0) as renderer:
        before = team.render("disc", 32, renderer)
        with pytest.raises(InputError, match="icon 'bomb' of the set 'noto' cannot be rendered"):
            team.render("bomb", 32, renderer)
        assert (team.render("disc", 32, renderer) == before).all()  # by a new process


def test_tarballs_that_unpack_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(iconify, "MAX_BYTES", 1 << 16)
    path = tmp_path / "iconify-json-noto-1.2.3.tgz"
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 1 << 26  # read whole by tarfile
    path.write_bytes(gzip.compress(header.tobuf() + bytes(1 << 26)))
    with pytest.raises(InputError, match="unpacks to more than"):
        read_icon_set(path, "noto")


@pytest.mark.parametrize(
    "change", [{"aliases": {"a": {}}}, {"aliases": {"a": 3}}, {"aliases": []}, {"icons": {"a": 3}}]
)
def test_wrong_entries(tmp_path, change):
    with pytest.raises(InputError, match="npm pack"):
        read_icon_set(write_tarball(tmp_path, "noto", icons("noto") | change), "noto")


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"a": 1, "a": 2}', b"null", b'"\\ud800"', b"{}\0"])
def test_members_that_are_not_json(tmp_path, text):
    path = tmp_path / "iconify-json-noto-1.2.3.tgz"
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo(iconify.MEMBER)
        info.size = len(text)
        archive.addfile(info, io.BytesIO(text))
    with pytest.raises(InputError, match=r"package/icons\.json.*npm pack"):
        read_icon_set(path, "noto")
