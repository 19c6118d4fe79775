"""Results that other tools wrote, judged by the same gate."""
