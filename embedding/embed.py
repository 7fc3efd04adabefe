"""Start `selfvit embed` in the processes of a launcher.

    accelerate launch -m selfvit.embedding.embed CHECKPOINT --data IMAGES --output VECTORS

Launchers start modules; the command itself is in `selfvit.commands`.
"""

from __future__ import annotations

import runpy
import sys


def main() -> None:
    """Run the command with the arguments of this process."""
    sys.argv[1:1] = ["embed"]
    runpy.run_module("selfvit.cli", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

__all__ = ["main"]
