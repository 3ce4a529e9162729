"""The pushlog listener and the Pulse listener, which forward what they read to the service."""
