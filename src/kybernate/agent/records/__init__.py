"""What the agent knows: the ledger and its states, events, history, on disk and in memory."""
