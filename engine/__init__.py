"""The engine: scheduler, episode loop, store and what is computed from them."""
