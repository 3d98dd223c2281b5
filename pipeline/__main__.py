"""`python pipeline` in a clone is `kappaspeech`, without an installation."""

import os
import sys
from pathlib import Path

from kappaspeech.commands import main

# for the processes that this one starts
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH")]))
sys.exit(main())
