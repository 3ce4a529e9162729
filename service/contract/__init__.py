"""Code that listeners and service share: the schemas of events, settings, retries. It imports nothing else of ours."""
