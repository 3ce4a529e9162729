"""Clients of the upstream systems, each behind a small Protocol. They raise only `errors.UpstreamError`."""
