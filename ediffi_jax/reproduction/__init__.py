"""The paper's claims, measured at quarter scale (`launch.reproduce`): one module a claim, and what they share."""
