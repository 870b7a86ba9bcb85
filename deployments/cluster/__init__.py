"""Files for clusters: Ray Serve's configuration, Kubernetes, Docker."""
