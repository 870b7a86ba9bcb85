"""The shell around the agent: a gRPC service on Ray Serve, and the command line."""
