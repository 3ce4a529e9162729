"""The database: sessions, transactions that writers share, tables, and who is woken by what was stored."""
