"""Builds and proves the engines of this kit on the board: `python3 build_engine.py --help`."""

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))

if __name__ == "__main__":
    sys.dont_write_bytecode = True  # the kit stays as it was shipped, and its bundle intact
    sys.path[0] = os.path.join(HERE, "agent.pyz")  # in place of this folder

    from kdcompile.remote.agent.kit import main

    sys.exit(main(HERE))
