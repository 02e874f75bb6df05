"""What this machine can do, and what in a kybernate.yaml is most likely not meant. Usable without an agent."""
