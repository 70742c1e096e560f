"""Configuration: everything a user may set, as pydantic models and TOML."""
