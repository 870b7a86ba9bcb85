"""The wire's messages and calls, generated from protos/vision_agent.proto by `make protos`."""
