"""The systems we talk to, each behind a small Protocol. They raise `errors.Unavailable` and `errors.Refusal` alone."""
