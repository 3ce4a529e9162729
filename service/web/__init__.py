"""The page for people at `/`: routes, templates, static files. It reads and acts by the functions of `service.api`."""
