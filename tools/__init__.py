"""Scripts that look after the repository; nothing here is installed."""
