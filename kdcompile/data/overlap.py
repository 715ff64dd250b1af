"""No file may be in two splits: what is trained on must not judge."""

from collections.abc import Mapping, Sequence

from kdcompile.core.errors import KDError
from kdcompile.data.entry import Entry


def refuse_shared(found: Mapping[str, Sequence[Entry]]) -> None:
    """Refuse one file in two splits, by whatever path or link they name it.

    Copies are other files: `drop_twins` finds them by their content.

    Raises:
        KDError: `split-overlap`.
    """
    held: dict[tuple[int, int], str] = {}
    shared: dict[tuple[str, str], list[str]] = {}
    for split, entries in found.items():
        for entry in entries:
            info = entry.image.stat()
            other = held.setdefault((info.st_dev, info.st_ino), split)
            if other != split:
                shared.setdefault((other, split), []).append(entry.name)
    if shared:
        raise overlap(*next(iter(shared.items())))


def overlap(splits: tuple[str, str], names: Sequence[str]) -> KDError:
    """The refusal of images that are in both of two splits."""
    first, second = splits
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return KDError(
        "split-overlap",
        f"{names[0]}{more}: in the {first} split and in the {second} split",
        where=f"[data] {first}, {second}",
        fix=f"list each image in one split: take those out of {first} to be judged on them",
    )
