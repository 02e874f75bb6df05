"""The dashboard: static files that a browser runs as they are. They talk to the agent by its REST API only."""
