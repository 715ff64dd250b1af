"""The agent: builds, runs and times networks on the machine that it runs on, a board or this one.

Python 3.8 syntax with numpy and nothing else of Python's: CUDA is reached through the driver's own
library. `kdcompile.remote.archive` packs it, with the modules of kdcompile that it imports, into
one zip file, `agent.pyz`. Requests are JSON on standard input, each with its length in front
(`messages`), answers likewise on standard output:

    {"id": 1, "op": "hello"}                   {"id": 1, "ok": {...}}
    {"id": 2, "op": "load", "path": "no"}      {"id": 2, "error": {"code", "message", "fix"}}

`python3 agent.pyz [BACKEND]`, with BACKEND tensorrt (the default), onnxruntime, onnxruntime-cuda or
onnxruntime-tensorrt. Operations are the public methods of `worker.Worker`; sizes in `_mb` are MiB.
`python3 agent.pyz kit` builds the engines of the build kit that the file is in.
"""
