"""How good an encoder's vectors are: k-NN, linear probe, and measures that need no labels."""
