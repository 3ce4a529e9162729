"""What listeners and service share: the schemas of events, and how settings are read. It imports nothing of ours."""
