"""The system under test: agent loop, sandbox tools, safeguards, memory, backends, versions."""
