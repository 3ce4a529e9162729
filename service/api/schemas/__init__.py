"""Schemas of the API, a module for each noun: pydantic models, and never a table."""
