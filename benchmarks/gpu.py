"""The battery: half an hour of a GPU without a network, turned into the figures that matter.

    python benchmarks/gpu.py pack [--photos FOLDER --teacher FILE] [--tensorrt FOLDER]
    python benchmarks/gpu.py pack --back FOLDER       # what a call brought back goes with the next
    python benchmarks/gpu.py run --minutes 9 [--carried FOLDER] [--out FOLDER] [--second]
    python benchmarks/gpu.py run --backend cpu --minutes 3   # a dry run of every step, at toy size
    python benchmarks/gpu.py merge FOLDER             # results into benchmarks/ and the pages

`pack` lays out what each call carries and prints the plan. `run` goes on where it stopped, the most
valuable step first, and leaves everything in its output folder. Exit code of `run` 0: every step
passed or was skipped with a reason. 5: something remains, run it again. 1: a step failed. 4: there
is no GPU. Of `pack` 1: a call would carry more than it may.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from gpu_plan import Machine
from gpu_run import begin
from gpu_steps import FIRST, ROOT, SECOND, STEPS, Place

CARD = "import torch; print(torch.cuda.get_device_name(), torch.__version__)"


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="part", required=True)
    pack = parts.add_parser("pack", help="lay out what each call carries")
    pack.add_argument("--folder", type=Path, default=ROOT / "build" / "gpu")
    pack.add_argument("--photos", type=Path, help="folder of the data set")
    pack.add_argument("--teacher", type=Path, help="the teacher's weights")
    pack.add_argument("--tensorrt", type=Path, help="parts of TensorRT and unpack.sh")
    pack.add_argument("--back", type=Path, help="what a call brought back; nothing else is packed")
    pack.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    pack.add_argument("--without-tests", action="store_true", help="compile the rows' kernels only")
    run = parts.add_parser("run", help="do the steps")
    run.add_argument("--minutes", type=float, default=Machine.call_minutes)
    run.add_argument("--backend", choices=("cuda", "cpu"), default="cuda")
    run.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-results")
    run.add_argument("--carried", type=Path, help="the folder that came with this call")
    run.add_argument("--work", type=Path, help="what lies here between calls")
    run.add_argument("--second", action="store_true", help="the steps of the second half hour")
    run.add_argument("--steps", nargs="+", choices=STEPS, metavar="STEP", help=", ".join(STEPS))
    run.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1) - 2))
    merge = parts.add_parser("merge", help="take the results")
    merge.add_argument("folder", type=Path)
    merge.add_argument("--into", type=Path, help="elsewhere than benchmarks/, and no pages")
    options = parser.parse_args(arguments)
    if options.part == "pack" and (options.photos is None) != (options.teacher is None):
        parser.error("give --photos and --teacher together")
    return options


def _pack(options: argparse.Namespace) -> int:
    import gpu_pack

    if options.back is not None:
        gpu_pack.add_back(options.folder, options.back)
        return 0
    given = (options.photos, options.teacher, options.tensorrt)
    try:
        tests = not options.without_tests
        gpu_pack.pack(options.folder, *given, options.jobs, tests, Machine())
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _run(options: argparse.Namespace) -> int:
    toy = options.backend == "cpu"
    if not toy and options.minutes and subprocess.run([sys.executable, "-c", CARD]).returncode:
        print("no CUDA GPU that PyTorch sees: --backend cpu is the dry run", file=sys.stderr)
        return 4
    out = options.out.absolute()
    own = out / "work" if toy else Path(tempfile.gettempdir()) / "kdcompile-gpu"
    work = options.work.absolute() if options.work else own
    place = Place(options.backend, work, options.jobs)
    half = SECOND if options.second else (*FIRST, *SECOND) if toy else FIRST
    names = options.steps or [step.name for step in half]
    carried = None if options.carried is None else options.carried.absolute()
    return begin(place, carried, out, options.minutes).run(names)


def _merge(options: argparse.Namespace) -> int:
    import gpu_merge

    print("\n".join(gpu_merge.merge(options.folder, options.into or ROOT / "benchmarks")))
    if options.into is None:
        gpu_merge.pages()
    return 0


def main(arguments: Sequence[str]) -> int:
    """Do a part; the exit code is in the module's docstring."""
    options = parsed(arguments)
    return {"pack": _pack, "run": _run, "merge": _merge}[options.part](options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
