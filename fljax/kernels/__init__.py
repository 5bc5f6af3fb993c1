"""The fixed-point kernel, convolutions as matrix products, norms."""
