"""Tiles of a few channels by many pixels, or of many channels by a few pixels."""

from typing import no_type_check

from kdcompile.kernels._maps import ceil_div, power_of_two
from kdcompile.kernels._runtime import jit, tl
from kdcompile.kernels._tune import Config


def tile_sizes(config: Config, channels: int, pixels: int, last: bool) -> dict[str, int]:
    """CHANNELS and PIXELS of a tile: the innermost dimension of memory gets its share first.

    Args:
        config: "TILE", the elements of a tile; "CHANNELS" and "PIXELS", the most of either along
            memory. Without "PIXELS" a row may fill the tile.
        channels: of the map.
        pixels: of the map.
        last: whether the channels of a map lie innermost.
    """
    tile, most, wide = config["TILE"], power_of_two(channels), power_of_two(pixels)
    if last:
        block = min(config["CHANNELS"], most)
        return {"CHANNELS": block, "PIXELS": min(tile // block, wide)}
    size = min(config.get("PIXELS", tile), wide)
    return {"CHANNELS": min(tile // size, most), "PIXELS": size}


def strips(blocks: int, rows: int, programs: int = 8192) -> tuple[int, int]:
    """(steps, strips): each of `rows` rows of blocks is cut into strips of so many steps.

    Few programs leave few partial results, and enough of them keep every card busy.
    """
    steps = min(max(blocks * rows // programs, 1), blocks)
    return steps, ceil_div(blocks, steps)


def launch(config: Config) -> dict[str, int]:
    """What Triton itself takes of a configuration."""
    return {name: config[name] for name in ("num_warps", "num_stages")}


@jit
@no_type_check
def tile_at(pointer, image, channel, start, pixel, C, P, LAST: tl.constexpr):
    """Addresses of a tile that begins at pixel `start`; few of their bits differ by thread."""
    corner = pointer + (image * P + (start if LAST else 0)) * C + (0 if LAST else start)
    if LAST:
        return corner + (channel[:, None] + (pixel * C)[None, :])
    return corner + (channel.to(tl.int64) * P)[:, None] + pixel[None, :]
