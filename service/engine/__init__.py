"""Engine for work of any kind: lease, retry, bury, share fairly, sweep. It knows no step of the flow."""
