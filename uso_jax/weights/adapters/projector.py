# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""USO's style projector in a safetensors file, as upstream releases it."""

from uso_jax import params
from uso_jax.common.errors import InputError
from uso_jax.models.projector import HierarchicalProjector, ProjectorConfig
from uso_jax.weights.files.safetensors_file import SafetensorsFile
from uso_jax.weights.parts import Part
from uso_jax.weights.tables.flux import PROJECTOR
from uso_jax.weights.tables.table import to_flax

PREFIX = "feature_embedder."
_SIZES = {  # field: tensor, axis
    "siglip_tokens": ("high_embedding_linear.0.weight", 1),
    "style_tokens": ("high_embedding_linear.0.weight", 0),
    "siglip_dim": ("high_projection.weight", 1),
    "hidden_size": ("high_projection.weight", 0),
}
_OUTPUTS = ("high_projection", "proj_out", "mlp/out_layer")  # the last layer of each kind of projector
_MOST = 1 << 16  # of any size


def width_of(part: Part) -> int:
    """Return the width of a projector's tokens, whatever its kind."""
    paths = (f"feature_embedder/{layer}/kernel" for layer in _OUTPUTS)
    return next(part.params[path].shape[-1] for path in paths if path in part.params)


def read_projector(file: SafetensorsFile) -> Part:
    """Return the projector of a file. Its sizes do not say which layers of SigLIP it reads.

    Raises:
      InputError: tensors are missing, stray or of wrong shape.
    """
    sizes = {}
    for field, (key, axis) in _SIZES.items():
        tensor = file.tensors.get(PREFIX + key)
        if tensor is None or len(tensor.shape) != 2 or not 0 < tensor.shape[axis] < _MOST:
            raise InputError(f"{file.path} is no complete style projector: {PREFIX}{key} is missing or of wrong shape")
        sizes[field] = tensor.shape[axis]
    width = sizes.pop("hidden_size")
    config = ProjectorConfig(**sizes)
    inner = params.shapes(lambda rngs: HierarchicalProjector(config, width, rngs=rngs))
    shapes = {f"feature_embedder/{path}": struct for path, struct in inner.items()}
    try:
        values = to_flax(PROJECTOR, shapes, iter(file))
    except InputError as error:
        raise InputError(f"{file.path}: {error}") from error
    return Part(values, {"projector": sizes})
