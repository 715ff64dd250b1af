"""Architectures of staged students."""


def stage(block="conv", width=16, depth=1, stride=1, down="pool", dilation=1):
    return {
        "block": block, "width": width, "depth": depth, "stride": stride, "down": down,
        "dilation": dilation,
    }  # fmt: skip


def architecture(*stages, **changes):
    whole = {
        "family": "staged", "seed": 0, "input_scale": 1.0, "stages": list(stages),
        "in_channels": 3, "out_channels": 1, "head": "dense", "output_stride": 8,
    }  # fmt: skip
    return whole | changes
