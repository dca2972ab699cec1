"""Where the tasks of a plan run: one file an executor, registered by `register_executor`. Packages that only one of them needs
are imported by its functions."""
