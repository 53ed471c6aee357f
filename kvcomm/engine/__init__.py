"""Engines: what runs a model."""

import importlib
import sys
import warnings

if "IPython" in sys.modules:
    # transformers takes tqdm's bar for notebooks, which warns where it could not be shown. kvcomm
    # shows none.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("tqdm.auto")
