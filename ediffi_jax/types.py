"""Shape-typed aliases of the arrays that cross a room's border.

Axes: `b` images of a batch, `h w` rows and columns, `c` channels, `t` context tokens, `d` features.
Images are float in [-1, 1] unless a docstring says uint8.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Array, Bool, Float, Int

Images = Float[Array, "b h w c"]
Sigmas = Float[Array, "b"]  # noise level of each image
PerImage = Float[Array, "b"]
Scalar = Float[Array, ""]
Features = Float[Array, "b h w c"]
Vectors = Float[Array, "b d"]
Tokens = Float[Array, "b t d"]
TokenMask = Bool[Array, "b t"]
Ids = Int[Array, "b t"]
Keys = Array  # typed PRNG keys, one an image
Params = Any  # pytree of parameters
