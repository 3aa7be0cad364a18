"""Talking to a forge: the smart-HTTP client, credentials, webhooks."""
