"""From episodes to an adapter: facts, questions, examples, training, probes."""
