"""What answers prompts: the backend protocol, chat rendering, fingerprints, and the backends themselves."""
