"""What makes commands of the soak short, in the process that runs one: short timings, no drawing.

Pictures are blank and of their size: drawing them is most of a bundle's seconds, in memory alone.
"""

from matplotlib.backends.backend_agg import FigureCanvasAgg

from kdcompile.core import measurement

BLOCK_SECONDS = 0.02


def hurry() -> None:
    """Time in short blocks, and leave pictures blank, for the rest of this process."""
    measurement.BLOCK_SECONDS = BLOCK_SECONDS
    FigureCanvasAgg.draw = FigureCanvasAgg.get_renderer
