"""`python pipeline` in a clone is `kappaspeech`, where nothing is installed."""

import sys

from kappaspeech.commands import main

sys.exit(main())
