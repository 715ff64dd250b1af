"""The one table of tolerances of the kernel tests: relative RMS errors by type.

`forward` bounds a loss, `gradient` a gradient, both against float64 on the same (rounded) inputs.
float32 sums of some thousands of terms stay below 1e-5. A gradient in float16 or bfloat16 is
rounded when it is stored, to 2^-11 and 2^-8 at worst, and products inside are rounded alike.
"""

import torch

FORWARD = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 4e-3}
GRADIENT = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
