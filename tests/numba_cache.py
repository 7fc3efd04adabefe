"""Let numba store what it compiles for UMAP, which takes 15 seconds in each process otherwise."""

import functools

try:
    import numba
except ImportError:  # umap-learn is optional
    pass
else:
    numba.njit = functools.partial(numba.njit, cache=True)  # type: ignore[assignment]
