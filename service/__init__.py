"""The service: an API, and the worker and reporters that do what was stored."""
