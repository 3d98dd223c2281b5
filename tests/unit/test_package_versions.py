"""Versions of what is installed, and of what isn't."""

from __future__ import annotations

import numpy as np

from kappaspeech.package_versions import NOT_INSTALLED, describe_versions, find_version


def test_a_package_has_its_version_and_one_that_is_missing_has_none():
    assert find_version("numpy") == np.__version__
    assert find_version("no-such-package-as-this") is None
    assert describe_versions(["numpy", "no-such-package-as-this"]) == {
        "numpy": np.__version__,
        "no-such-package-as-this": NOT_INSTALLED,
    }
