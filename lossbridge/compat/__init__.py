"""Other libraries' conventions on arrays of every backend: one module a library, which need not be installed."""
