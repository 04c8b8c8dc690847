# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Style files: SigLIP features of style images, used in place of the images.

    features          float32 [n, 3, s, c]      n images, the three depths that the projector reads
    metadata          {"format": "uso_jax style 1", "tower": ..., "images": JSON, "sha256": of all of these}

The features are inputs of the projector, so a file stays valid when the projector is trained. It belongs to one SigLIP,
identified by `tower`. A name without a suffix is a file of the style library, ~/.local/share/uso_jax/styles.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors
from jaxtyping import Float
from safetensors.numpy import save

from uso_jax.common import atomic_files, locks, untrusted, user_folders
from uso_jax.common.errors import InputError
from uso_jax.common.folders import is_clutter

FORMAT = "uso_jax style 1"


@dataclass(frozen=True, eq=False)
class StyleEmbedding:
    """The features of one or more style images. Each image has separate style tokens, as upstream."""

    features: Float[np.ndarray, "n 3 s c"]
    tower: str
    images: tuple[dict[str, Any], ...]
    path: str | None = None
    sha256: str | None = None

    def record(self) -> dict[str, Any]:
        """Return what identifies the style, in JSON terms."""
        return {"path": self.path, "sha256": self.sha256}


def style_library() -> pathlib.Path:
    """Return the folder of styles that are used by name."""
    return user_folders.data() / "styles"


def style_path(name: str | pathlib.Path) -> pathlib.Path:
    """Return the file of a style: a path that ends in .safetensors, or a name in the library."""
    path = pathlib.Path(name)
    return path if path.suffix == ".safetensors" else style_library() / f"{name}.safetensors"


def saved_styles() -> list[pathlib.Path]:
    """Return the files of the style library in order of name."""
    return sorted(file for file in style_library().glob("*.safetensors") if not is_clutter(file.name))


def is_style(name: str | pathlib.Path) -> bool:
    """Return whether a string is the name or file of a style, and not the path of an image."""
    path = pathlib.Path(name)
    return path.suffix == ".safetensors" or (not path.suffix and not path.exists())


def write_style(name: str | pathlib.Path, style: StyleEmbedding) -> pathlib.Path:
    """Write a style atomically. Return its path."""
    path = style_path(name)
    images = json.dumps(list(style.images), ensure_ascii=False)
    features = np.ascontiguousarray(style.features, np.float32)
    metadata = {"format": FORMAT, "tower": style.tower, "images": images}
    data = save({"features": features}, metadata | {"sha256": _hash(features, metadata)})
    with locks.hold(path.parent, path.name), atomic_files.explained(f"style {path}", "choose another place"):
        atomic_files.write_file(path, data)
    return path


def read_style(name: str | pathlib.Path) -> StyleEmbedding:
    """Read a style.

    Raises:
      InputError: the file does not exist, or is not a style.
    """
    path = style_path(name)
    if not path.is_file():
        known = ", ".join(file.stem for file in saved_styles()) or "none"
        raise InputError(f"style {str(name)!r} is unknown: {path} does not exist; styles in the library: {known}")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise InputError(f"{path} is not a style file; create one with: uso-style encode IMAGE")
            features = file.get_tensor("features")
        if features.dtype != np.float32 or features.ndim != 4 or not np.isfinite(features).all():
            raise ValueError("features must be finite float32 [n, 3, s, c]")
        if metadata.get("sha256", known := _hash(features, metadata)) != known:
            raise ValueError("its bytes have changed: its SHA-256 is not the one on record")
        images = untrusted.json(metadata["images"], tuple[dict[str, Any], ...], str(path))
        tower = metadata["tower"]
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise InputError(f"style {path} cannot be read ({error}); encode it again") from error
    return StyleEmbedding(features, tower, images, str(name), digest)


def _hash(features: np.ndarray, metadata: Mapping[str, str]) -> str:
    facts = [metadata["tower"], metadata["images"], list(features.shape)]
    return hashlib.sha256(json.dumps(facts).encode() + features.tobytes()).hexdigest()


def mix_styles(styles: Sequence[StyleEmbedding], weights: Sequence[float]) -> StyleEmbedding:
    """Return one style with the weighted mean of the features of several.

    It has the tokens of one image, which cost less than those of several images. Styles are blended, not combined.

    Raises:
      InputError: the weights do not fit the styles, or the styles come from different towers.
    """
    if not styles or len(styles) != len(weights):
        raise InputError(f"{len(styles)} styles need {len(styles)} weights, not {len(weights)}")
    if not all(0 <= weight < float("inf") for weight in weights) or not sum(weights):
        raise InputError("weights of styles must be finite, at least 0, and not all 0")
    if len({style.tower for style in styles}) > 1:
        raise InputError(
            "these styles were encoded by different SigLIP towers; encode them again with the same weights"
        )
    total = sum(weights)
    features = sum(w / total * s.features.mean(axis=0, keepdims=True) for s, w in zip(styles, weights, strict=True))
    images = tuple(
        image | {"weight": image.get("weight", 1.0) * weight / total / len(style.images)}
        for style, weight in zip(styles, weights, strict=True)
        for image in style.images
    )
    return StyleEmbedding(features.astype(np.float32), styles[0].tower, images)
