"""One router a noun."""

from service import lean

lean.leave_out_pydantic_v1()  # before the first route is made
