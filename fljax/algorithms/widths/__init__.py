"""Width reduction: small devices train a network of fewer channels."""
