"""The model's stages as Serve deployments, and the calls to them."""
