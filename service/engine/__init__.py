"""How work is done, whatever it is: leased, retried, buried, shared fairly, swept. It knows no step of the flow."""
