"""The libraries that the models come from, imported when they are first needed."""

from importlib import import_module
from typing import Any


def library(name: str) -> Any:
    """A library's module; ImportError that names the extra to install."""
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ImportError(f"fastattn.models needs {package}: pip install 'fastattn[models]'") from error
