"""The digits example on canvases of 64x64, on which these benchmarks are measured.

The example itself deploys at 256x256, where a Jetson has work; training looks at as many pixels.
"""

AT_64 = (
    "data.train=train:1000",
    "data.val=val:100",
    "data.test=test:400",
    "export.shape=[1,1,64,64]",
    "distill.crop=64",
    "distill.batch=16",
    "quantize.images=64",
)
