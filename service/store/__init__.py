"""Database access: sessions, shared transactions, tables, and wake-ups of the loops that wait for stored work."""
