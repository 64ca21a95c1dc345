"""A load generator for OpenAI-compatible servers: latency, throughput and goodput under open-loop or closed-loop load."""
