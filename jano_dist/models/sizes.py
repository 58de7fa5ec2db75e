"""How large a model's parts are, from its config files alone: no weight is read, no memory taken."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from jano_dist.errors import UserError
from jano_dist.geometry import KNOWN, Geometry, find_model
from jano_dist.models.folder import Parts, read_parts
from jano_dist.models.placement import repeated_blocks
from jano_dist.models.weights import stored_dtype


@dataclass(frozen=True)
class Parameters:
    """Elements of a module's parameters, tensor by tensor.

    Attributes:
        plain_tensors: of those in the model's dtype.
        float32_tensors: of those that diffusers keeps in float32.
    """

    plain_tensors: tuple[int, ...]
    float32_tensors: tuple[int, ...]

    @property
    def plain(self) -> int:
        """All in the model's dtype."""
        return sum(self.plain_tensors)

    @property
    def float32(self) -> int:
        """All in float32."""
        return sum(self.float32_tensors)

    def nbytes(self, element: int) -> int:
        """Bytes, with `element` bytes per plain parameter."""
        return sum(self.tensor_bytes(element))

    def tensor_bytes(self, element: int) -> list[int]:
        """Bytes of each tensor."""
        return [size * element for size in self.plain_tensors] + [size * 4 for size in self.float32_tensors]


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a model's parts.

    Attributes:
        geometry: see `Geometry`.
        transformer: all of it. layers: its layers, which may differ in size.
        text_encoder: number of parameters. image_encoder, vae: the same.
        vae_channels: of the decoder at full resolution (at lower ones it has more).
        stored_elements: bytes per parameter in the files of transformer and text encoder.
        from_table: whether the sizes are not the model's own files', but known by its name.
    """

    geometry: Geometry
    transformer: Parameters
    layers: tuple[Parameters, ...]
    text_encoder: int
    image_encoder: int
    vae: int
    vae_channels: int
    stored_elements: tuple[int, int]
    from_table: bool


def read_sizes(name: str, *, local: bool = False) -> ModelSizes:
    """Sizes of a model by name or folder.

    Args:
        local: look at files of this machine only; without them take what is known of the name.

    Raises:
        UserError: unknown model.
    """
    source = find_model(name)
    try:
        parts = read_parts(name, local=local)
    except UserError as error:
        if Path(source).is_dir() or not local:
            raise
        raise UserError(
            f"model {name!r} is not on this machine: fetch it, or name one of {', '.join(KNOWN)}"
        ) from error
    transformer, vae = parts.skeletons["transformer"], parts.skeletons["vae"]
    return ModelSizes(
        geometry=parts.geometry,
        transformer=_count(transformer, transformer),
        layers=tuple(_count(block, transformer) for block in repeated_blocks(transformer)),
        text_encoder=_encoders(parts, "text_encoder"),
        image_encoder=_encoders(parts, "image_encoder"),
        vae=_count(vae).plain,
        vae_channels=_decoder_channels(vae.config),
        stored_elements=_stored_elements(source),
        from_table=parts.from_table,
    )


def _encoders(parts: Parts, name: str) -> int:
    """Parameters of all parts whose names begin so."""
    return sum(_count(module).plain for part, module in parts.skeletons.items() if part.startswith(name))


def _decoder_channels(vae: Any) -> int:
    """Of the decoder's last stage."""
    if "block_out_channels" in vae:
        return int(vae.block_out_channels[0])
    return int((vae.decoder_base_dim or vae.base_dim) * vae.dim_mult[0])


def _count(module: nn.Module, owner: Any = None) -> Parameters:
    """Parameters of a module, and tables that lie in its files; `owner` is the model whose class says what
    stays in float32."""
    sizes: tuple[list[int], list[int]] = ([], [])
    stored = module.state_dict().keys()
    tables = [each for each in module.named_buffers() if each[0] in stored]  # SD3's positions
    for name, parameter in (*module.named_parameters(), *tables):
        sizes[stays_float32(owner, name)].append(parameter.numel())
    return Parameters(tuple(sizes[0]), tuple(sizes[1]))


def stays_float32(model: Any, name: str) -> bool:
    """Whether diffusers loads that parameter in float32 whatever dtype is asked for."""
    kept = getattr(model, "_keep_in_fp32_modules", None) or ()
    return not set(kept).isdisjoint(name.split("."))


def _stored_elements(source: str) -> tuple[int, int]:
    """Bytes per parameter in the files; 4, the most, where there are no files to ask."""
    parts = [Path(source, part) for part in ("transformer", "text_encoder")]
    sizes = [stored_dtype(part).itemsize if part.is_dir() else 4 for part in parts]
    return sizes[0], sizes[1]
