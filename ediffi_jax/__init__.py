"""JAX implementation of eDiff-I."""
