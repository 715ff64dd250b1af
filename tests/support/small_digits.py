"""The digits example on canvases of 64x64: a sixteenth of the pixels that it deploys at."""

AT_64 = ["export.shape=[1,1,64,64]", "distill.crop=64", "distill.batch=16"]
