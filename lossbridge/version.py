"""The version of the package, alone in its file: what needs it does not have to import the package."""

__version__ = "0.1.0"
