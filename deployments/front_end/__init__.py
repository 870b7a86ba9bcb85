"""One front-end replica: its gRPC server, who may call, and the RPCs."""
