"""The database: sessions, transactions that writers share, tables, the clock, and who is woken by what was stored."""
