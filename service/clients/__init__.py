"""Clients of the upstream systems, each behind a small Protocol. They raise only `errors.UpstreamError`."""

from service import lean

lean.load_taskcluster()
