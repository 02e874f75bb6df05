"""The agent: ledger, operations, arbiter, events and REST API of one node. Drives the engine, owns no GPU logic."""
