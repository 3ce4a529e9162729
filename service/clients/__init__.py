"""The systems we talk to, each behind a small Protocol. They raise only what `errors` calls `UpstreamError`."""
