"""The REST API: on the agent's socket and over TCP."""
