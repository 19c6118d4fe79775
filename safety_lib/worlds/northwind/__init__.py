"""The example company: a support agent with ten tools, on a simulated model or a real one."""
