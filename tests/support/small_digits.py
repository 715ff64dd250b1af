"""The digits example made small: on canvases of 64x64, and on few of its own size."""

import re

# a sixteenth of the pixels that it deploys at
AT_64 = ["export.shape=[1,1,64,64]", "distill.crop=64", "distill.batch=16"]


def few_photos(folder, photos=4):
    """Leave so many canvases in each split of the example's spec, as large as they were."""
    spec = folder / "kdcompile.toml"
    text, splits = re.subn(r'"(train|val|test):\d+@', rf'"\1:{photos}@', spec.read_text())
    assert splits == 3
    spec.write_text(text)
