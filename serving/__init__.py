"""The HTTP server that both programs stand behind: TLS, passwords, deadlines; it imports neither."""
